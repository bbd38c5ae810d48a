"""Exceptions for user errors, failed checks and the time limit; `cli` turns them into messages and exit codes."""

from collections.abc import Sequence


class UserError(Exception):
    """An error that the user can fix: in a recipe, a file or a path. Exit code 2, no traceback.

    Args:
        what: Description of the error, in one sentence.
        where: File and line (`recipe.yaml:12`), key or path; empty if unknown.
        instead: What to write or do instead; empty if it is obvious.
        parts: The errors that this one combines; `what` has them all.
    """

    def __init__(self, what: str, *, where: str = "", instead: str = "", parts: "Sequence[UserError]" = ()) -> None:
        super().__init__(what)
        self.what, self.where, self.instead, self.parts = what, where, instead, tuple(parts)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  Instead: {self.instead}" if self.instead else text


class CheckFailed(Exception):
    """A measured invariant that was not met. Exit code 1, no traceback."""


class CompressionFailed(CheckFailed):
    """A run that is complete and whose result is bad: an accuracy criterion is not met, or nothing is won.

    Exit code 4, no traceback.
    """


class TimeLimitReached(Exception):
    """The time limit of a run is over and everything that it has computed is saved. Exit code 75, no traceback.

    Args:
        where: Where the run has stopped: `at step 120 of 500`, to which the pipeline adds the stage.
    """
