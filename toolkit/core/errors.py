"""The two ways in which a command ends badly; `cli` turns them into messages and exit codes."""


class UserError(Exception):
    """Something the user can mend: a recipe, a file, a path. Exit code 2, no traceback.

    Args:
        what: What is wrong, in one sentence.
        where: File and line (`recipe.yaml:12`), key or path; empty when there is none.
        instead: What to write or do instead; empty when it is obvious.
    """

    def __init__(self, what: str, *, where: str = "", instead: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.instead = what, where, instead

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  Instead: {self.instead}" if self.instead else text


class CheckFailed(Exception):
    """An invariant or a promised criterion was measured and missed. Exit code 1, no traceback."""
