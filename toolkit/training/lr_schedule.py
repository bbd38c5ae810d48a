"""Learning-rate schedules as multipliers of the peak rate: pure functions of the step, so that resuming is exact."""

from toolkit.core.errors import UserError


def linear(step: int, total: int, warmup: int) -> float:
    """Rises from 0 to 1 over `warmup` steps, then falls to 0 at step `total`."""
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, (total - step) / max(1, total - warmup))


def rewinding(step: int, total: int, warmup: int, start: int, end: int, frequency: int) -> float:
    """Linear decay with warm-up, rewound at each pruning step (paper, section 3; IntelLabs' public schedule).

    The steps of the pruning phase do not count towards the decay: before it the rate falls as if it were not there,
    in it the rate goes back every `frequency` steps to its value at `start` and falls again from there, and after
    it the rate falls to 0 at `total` from that same value. Where pruning starts within the warm-up, that value is
    what the decay would be at `start`, above 1: decay / (decay - warmup) at step 0.

    Args:
        step: Optimizer step, from 0.
        total: Steps of the whole run.
        warmup: Steps in which the rate rises from 0.
        start: First step of the pruning phase.
        end: First step after the pruning phase.
        frequency: Steps between two prunings.
    """
    if step < warmup:
        return step / max(1, warmup)
    pruning = end - start
    if step < start:
        spent = step
    elif step < end:
        spent = start + (step - start) % frequency
    else:
        spent = step - pruning
    decay = total - pruning
    return max(0.0, (decay - spent) / max(1, decay - warmup))


def require_bounded_rewinding(total: float, warmup: float, start: float, end: float, where: str) -> None:
    """A ramp that starts within the warm-up rewinds to at most twice the peak rate; 1.02 times in the paper's recipes.

    Args:
        total: Steps of the whole run; like the others in any unit of time.
        warmup: Of them with a rising rate.
        start: Of the pruning phase.
        end: Of the pruning phase.
        where: Section that says so.

    Raises:
        UserError: The steps outside the pruning phase are hardly more than the warm-up.
    """
    decay = total - (end - start)
    if start < warmup and 2 * warmup > decay:
        raise UserError(
            f"the learning rate would be rewound to more than twice its peak: warm-up takes {warmup / decay:.0%} of "
            "the steps outside the pruning ramp, which starts within it",
            where=where,
            instead="an earlier end of the ramp, a smaller warmup_ratio, or learning_rate_rewinding: false",
        )
