"""The terminal, for text of any origin. Imports rich, so commands import this module when they run."""

import rich.console


class Console(rich.console.Console):
    """A console that prints text as it is: a name of a file, task or tensor may look like markup or an emoji code."""

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False)
