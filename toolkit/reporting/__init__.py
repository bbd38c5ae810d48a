"""Tables, plots and pages of a run: pure functions of its manifests."""

from toolkit.reporting.cards import write_cards
from toolkit.reporting.report import build
from toolkit.reporting.terminal import console
from toolkit.reporting.verdicts import failures

__all__ = ["build", "console", "failures", "write_cards"]
