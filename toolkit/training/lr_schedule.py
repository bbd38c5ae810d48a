"""Learning-rate schedules as multipliers of the peak rate: pure functions of the step, so that resuming is exact."""

from toolkit.core.errors import UserError

CYCLE_FLOOR = 0.01  # of the peak: oBERT's cycles fall from 5e-4 to 5e-6


def linear(step: int, total: int, warmup: int) -> float:
    """Returns the multiplier of linear decay: rises from 0 to 1 over `warmup` steps, falls to 0 at step `total`."""
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, (total - step) / max(1, total - warmup))


def rewinding(step: int, total: int, warmup: int, start: int, end: int, frequency: int) -> float:
    """Returns the multiplier of linear decay, rewound at each pruning step (paper, section 3; IntelLabs' code).

    The steps of the pruning phase do not count towards the decay: before the phase the rate falls as if there were no
    pruning; during the phase it returns to its value at `start` every `frequency` steps and falls again; after the
    phase it falls from that value to 0 at `total`. If pruning starts within the warm-up, that value is the one that
    the decay has at `start`, above 1: decay / (decay - warmup) at step 0.

    Args:
        step: Optimizer step, from 0.
        total: Steps of the run.
        warmup: Steps of warm-up.
        start: First step of the pruning phase.
        end: First step after the pruning phase.
        frequency: Steps between two pruning steps.
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


def cyclic(step: int, total: int, warmup: int, start: int, end: int, frequency: int) -> float:
    """Returns the multiplier of one learning-rate cycle per mask update (Kurtic et al., 2022, oBERT's recipes).

    From each mask update to the next the rate falls linearly from its peak to `CYCLE_FLOOR` times the peak, then jumps
    back, so that the weights that remain can recover from each update. Before the first update there is one such cycle
    as well. From the last update on, the rate falls from the peak to 0 at `total`.

    Args:
        step: Optimizer step, from 0.
        total: Steps of the run.
        warmup: Steps of warm-up, which delay the peak of their cycle.
        start: Step of the first mask update.
        end: Step of the last mask update.
        frequency: Steps between two updates; the last interval may be shorter.
    """
    if step < warmup:
        return step / max(1, warmup)
    floor = CYCLE_FLOOR
    if step < start:
        first, following = 0, start
    elif step < end:
        first = step - (step - start) % frequency
        following = min(first + frequency, end)
    else:
        first, following, floor = end, total, 0.0
    first = max(first, warmup)
    return max(0.0, 1 - (1 - floor) * (step - first) / max(1, following - first))


def require_bounded_rewinding(total: float, warmup: float, start: float, end: float, where: str) -> None:
    """Checks that a ramp within the warm-up rewinds to at most twice the peak rate; 1.02 times in the paper's recipes.

    Args:
        total: Steps of the run; like all others in any common unit.
        warmup: Steps of warm-up.
        start: First step of the pruning phase.
        end: First step after the pruning phase.
        where: Section of the recipe that defines the ramp.

    Raises:
        UserError: The ramp starts within the warm-up, which is more than half of the steps outside the pruning phase.
    """
    decay = total - (end - start)
    if start < warmup and 2 * warmup > decay:
        raise UserError(
            f"the learning rate would be rewound to more than twice its peak: warm-up takes {warmup / decay:.0%} of "
            "the steps outside the pruning ramp, which starts within it",
            where=where,
            instead="an earlier end of the ramp, a smaller warmup_ratio, or learning_rate_rewinding: false",
        )
