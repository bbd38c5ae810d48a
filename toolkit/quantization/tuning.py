"""Accuracy-driven search for the operations to keep in FP32. Pure logic: trials are run by the caller.

Operations are ranked by their quantization sensitivity. The search keeps the 1, 2, 4, 8, … most sensitive ones in FP32
until the criterion is met, then bisects back to the last failure: a few trials find the shortest sufficient prefix of
the ranking. Remaining time is used to improve the recipe's objective.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from toolkit.recipe import Tuning

TUNING_FILE = "tuning.json"  # in a quantized checkpoint: the operations kept in FP32, and all trials


@dataclass(frozen=True)
class Trial:
    """Result of evaluating one quantized model.

    Attributes:
        number: Trial number; 0 is the model as the recipe configures it.
        returned: Operations kept in FP32.
        metric: Score on the tuning examples.
        loss: Accuracy loss against FP32, in the criterion's unit.
        met: Whether the loss meets the accuracy criterion.
        seconds: Duration. Trial 0 counts evaluation only, since its model is built without tuning too.
    """

    number: int
    returned: tuple[str, ...]
    metric: float
    loss: float
    met: bool
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Returns the trial as JSON values for the manifest."""
        return asdict(self)


Subset = tuple[str, ...]


def search(
    attempt: Callable[[int, Subset], Trial], rank: Callable[[], Sequence[str]], section: Tuning
) -> tuple[Trial, ...]:
    """Runs trials until the search or the exit policy ends, and returns all of them in order.

    Args:
        attempt: Runs a trial, given its number and the operations to keep in FP32 (none for number 0).
        rank: Returns the operations, most sensitive first; called only if trial 0 does not end the search.
        section: Objective and exit policy.
    """
    trials = [attempt(0, ())]
    policy = section.exit_policy
    has_time_budget = policy.timeout > 0
    if policy.max_trials == 1 or (trials[0].met and not (has_time_budget and section.objective == "accuracy")):
        return tuple(trials)
    subsets = _subsets(list(rank()), trials[0].met, has_time_budget, section.objective)
    chosen = next(subsets, None)
    while chosen is not None and len(trials) < policy.max_trials:
        if has_time_budget and sum(t.seconds for t in trials) >= policy.timeout:
            break
        trials.append(attempt(len(trials), chosen))
        try:
            chosen = subsets.send(trials[-1].met)
        except StopIteration:
            break
    return tuple(trials)


def select(trials: Sequence[Trial], objective: str, costs: dict[int, float]) -> Trial:
    """Returns the best trial by the objective among those that meet the criterion, or the best score if none does.

    Args:
        trials: At least one trial.
        objective: INC's name of the objective.
        costs: Quantity that the objective minimises (milliseconds or bytes), by trial number, for the trials that meet
            the criterion; unused if only one does, or for `accuracy`.
    """
    fits = [t for t in trials if t.met]
    if not fits or objective == "accuracy":
        return max(fits or trials, key=lambda t: (t.metric, -len(t.returned)))
    if len(fits) == 1:
        return fits[0]
    return min(fits, key=lambda t: (costs[t.number], len(t.returned)))


def _subsets(ranked: list[str], met: bool, has_time_budget: bool, objective: str) -> Generator[Subset, bool, None]:
    """Yields the operations to keep in FP32 next; expects `send(whether the criterion was met)`."""
    low, high = -1, 0  # lengths: longest prefix of the ranking that failed, shortest that met the criterion
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
    if not has_time_budget:
        return
    if objective == "accuracy":
        for count in range(high + 1, len(ranked) + 1):
            yield tuple(ranked[:count])
        return
    kept = ranked[:high]
    for name in reversed(ranked[: high - 1]):  # the prefix without its last operation has failed already
        fewer = tuple(n for n in kept if n != name)
        if (yield fewer):
            kept = list(fewer)
