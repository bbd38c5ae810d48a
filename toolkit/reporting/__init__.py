"""Tables, plots and pages: pure functions of manifests."""

from toolkit.reporting.page import build
from toolkit.reporting.terminal import console
from toolkit.reporting.text import missed_criteria

__all__ = ["build", "console", "missed_criteria"]
