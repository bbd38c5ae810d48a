"""The search for a quantized model that keeps the accuracy criterion: which matrices go back to FP32. Pure logic.

Matrices are ranked by what quantizing each alone does to the logits. The search returns the worst 1, 2, 4, 8, … until
the criterion is met, then halves the gap to the last miss: a few trials find the shortest head of the ranking that
will do. With time left it looks for something better by the recipe's objective.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from toolkit.recipe import Tuning

TUNING_FILE = "tuning.json"  # in a quantized checkpoint: the operations in FP32, and every trial behind that choice


@dataclass(frozen=True)
class Trial:
    """One quantized model that was tried.

    Attributes:
        number: 0 is the model as the recipe asks for it.
        returned: Operations that run in FP32 in it.
        metric: Score on the tuning examples.
        loss: What was lost against FP32, in the criterion's unit.
        met: Whether the criterion allows that.
        seconds: What the trial took; of the first one only the judging, since it is made without a search as well.
    """

    number: int
    returned: tuple[str, ...]
    metric: float
    loss: float
    met: bool
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


Subset = tuple[str, ...]


def search(
    attempt: Callable[[int, Subset], Trial], rank: Callable[[], Sequence[str]], section: Tuning
) -> tuple[Trial, ...]:
    """Tries models until the policy says stop; every trial is returned, in the order in which it was made.

    Args:
        attempt: (number, operations to return) -> the trial. Number 0 returns none.
        rank: The operations, most sensitive first; asked for only when the first trial is not enough.
        section: Objective and exit policy.
    """
    trials = [attempt(0, ())]
    policy = section.exit_policy
    goes_on = policy.timeout > 0
    if trials[0].met and not (goes_on and section.objective == "accuracy"):
        return tuple(trials)
    subsets = _subsets(list(rank()), trials[0].met, goes_on, section.objective)
    chosen = next(subsets, None)
    while chosen is not None and len(trials) < policy.max_trials:
        if goes_on and sum(t.seconds for t in trials) >= policy.timeout:
            break
        trials.append(attempt(len(trials), chosen))
        try:
            chosen = subsets.send(trials[-1].met)
        except StopIteration:
            break
    return tuple(trials)


def select(trials: Sequence[Trial], objective: str, costs: dict[int, float]) -> Trial:
    """The trial that the objective chooses of those that meet the criterion; the best score when none does.

    Args:
        trials: At least one.
        objective: INC's word.
        costs: Trial number -> what the objective wants small (milliseconds, bytes), for the trials that meet the
            criterion; not needed where only one does, nor for `accuracy`.
    """
    fits = [t for t in trials if t.met]
    if not fits or objective == "accuracy":
        return max(fits or trials, key=lambda t: (t.metric, -len(t.returned)))
    if len(fits) == 1:
        return fits[0]
    return min(fits, key=lambda t: (costs[t.number], len(t.returned)))


def _subsets(ranked: list[str], met: bool, goes_on: bool, objective: str) -> Generator[Subset, bool, None]:
    """What to return next; each `yield` gives back whether the criterion was met with it."""
    low, high = -1, 0  # the longest head of the ranking that missed, the shortest that met
    if not met:
        low, high = 0, 1
        while not (yield tuple(ranked[:high])):
            if high == len(ranked):
                return
            low, high = high, min(2 * high, len(ranked))
        while high - low > 1:
            middle = (low + high) // 2
            if (yield tuple(ranked[:middle])):
                high = middle
            else:
                low = middle
    if not goes_on:
        return
    if objective == "accuracy":
        for count in range(high + 1, len(ranked) + 1):
            yield tuple(ranked[:count])
        return
    kept = ranked[:high]
    for name in reversed(ranked[: high - 1]):  # without the last one it missed: that is how `high` was found
        fewer = tuple(n for n in kept if n != name)
        if (yield fewer):
            kept = list(fewer)
