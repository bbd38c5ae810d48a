"""Goals of the search: which points have to be scored, and which of them is chosen."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from toolkit.core.errors import UserError
from toolkit.pipeline.search.points import Point

# Kind of goal -> form of its value, an example, and the unit's factor.
_FORMS = {
    "latency": (r"(\d+\.?\d*) ?ms", "4ms, in milliseconds per inference", 1.0),
    "speedup": (r"(\d+\.?\d*)x?", "3, times as fast as the dense model in 8 bits", 1.0),
    "loss": (r"(\d+\.?\d*) ?%", "1%, of the dense model's score", 0.01),
}
Ms = Mapping[Point, float]
Scores = Mapping[Point, float]


@dataclass(frozen=True)
class Goal:
    """What the student is wanted for.

    Attributes:
        kind: `latency`: the best score within this time; `speedup`: the same, by the time of the dense INT8 model;
            `loss`: the smallest latency with at most this relative loss of the dense model's score.
        value: Milliseconds, factor or fraction.
    """

    kind: Literal["latency", "speedup", "loss"]
    value: float

    def __str__(self) -> str:
        texts = {
            "latency": f"at most {self.value:g} ms",
            "speedup": f"{self.value:g} times as fast as dense INT8",
            "loss": f"at most {self.value:.2%} of the dense score lost",
        }
        return texts[self.kind]


def parse_goal(given: Mapping[Literal["latency", "speedup", "loss"], str | None]) -> Goal:
    """Returns the goal of the command line's options.

    Raises:
        UserError: Not exactly one option is given, or its value has another form or is 0 or too large.
    """
    goals = {kind: text for kind, text in given.items() if text is not None}
    if len(goals) != 1:
        what = "exactly one goal is needed" if not goals else "only one goal is possible"
        raise UserError(what, instead="one of --latency 4ms, --speedup 3, --loss 1%")
    kind, text = next(iter(goals.items()))
    form, example, unit = _FORMS[kind]
    found = re.fullmatch(form, text.strip(), re.ASCII)
    value = unit * float(found[1]) if found else 0.0
    if not 0 < value < (1 if kind == "loss" else float("inf")):
        raise UserError(f"{text!r} is not a possible value", where=f"--{kind}", instead=f"e.g. {example}")
    return Goal(kind, value)


def dense_of(ms: Ms) -> Point:
    """Returns the point of the dense model with all of its layers."""
    return max(ms, key=lambda point: (point.layers, -point.zeros))


def time_limit(goal: Goal, ms: Ms) -> float | None:
    """Returns the milliseconds within which a point meets a goal; None for a goal of another kind."""
    if goal.kind == "loss":
        return None
    return goal.value if goal.kind == "latency" else ms[dense_of(ms)] / goal.value


def next_point(goal: Goal, ms: Ms, scores: Scores) -> Point | None:
    """Returns the point to be scored next; None if the choice cannot change any more.

    A point that keeps more than another one has no worse score. So a point is not scored if one that keeps more is at
    least as fast; nor, for a goal of latency, if one that keeps more is fast enough; nor, for a goal of loss, if one
    that keeps more loses too much, or if it is slower than one that is known to lose little enough.

    Args:
        goal: The goal.
        ms: Latency of every point.
        scores: Scores that are known; that of the dense model is.
    """
    limit, useful = time_limit(goal, ms), _useful(ms)
    if limit is not None:
        fast = [point for point in useful if ms[point] <= limit]
        found = [p for p in fast if p not in scores and not any(other.keeps_more_than(p) for other in fast)]
        return min(found, key=lambda point: ms[point], default=None)
    least = _least(goal, ms, scores)
    fails = [point for point, score in scores.items() if score < least]
    best = min(ms[point] for point, score in scores.items() if score >= least)  # the dense model itself at worst
    open_ = [p for p in useful if p not in scores and ms[p] < best and not any(f.keeps_more_than(p) for f in fails)]
    ordered = sorted(open_, key=lambda point: ms[point])
    return ordered[len(ordered) // 2] if ordered else None  # either all that are slower drop out, or all that keep less


def chosen(goal: Goal, ms: Ms, scores: Scores) -> Point | None:
    """Returns the point that meets a goal best; None if none does.

    The dense model itself is chosen only if it is fast enough.
    """
    limit = time_limit(goal, ms)
    if limit is not None:
        fast = [point for point in scores if ms[point] <= limit]
        return max(fast, key=lambda point: (scores[point], -ms[point]), default=None)
    least = _least(goal, ms, scores)
    good = [p for p, score in scores.items() if score >= least and ms[p] < ms[dense_of(ms)]]
    return min(good, key=lambda point: ms[point], default=None)


def nearest(goal: Goal, ms: Ms, scores: Scores) -> Point | None:
    """Returns the point that misses a goal least: that of the best score for a goal of loss, else the fastest one.

    None if there is no point but the dense model.
    """
    others = ms.keys() - {dense_of(ms)}
    if goal.kind == "loss" and (scored := others & scores.keys()):
        return max(scored, key=lambda point: scores[point])
    return min(others, key=lambda point: ms[point], default=None)


def frontier(ms: Ms, scores: Scores) -> set[Point]:
    """Returns the scored points that no other scored one beats in latency or score without being worse in the other."""

    def beats(one: Point, other: Point) -> bool:
        no_worse = ms[one] <= ms[other] and scores[one] >= scores[other]
        return no_worse and (ms[one], scores[one]) != (ms[other], scores[other])

    return {point for point in scores if not any(beats(other, point) for other in scores)}


def _useful(ms: Ms) -> list[Point]:
    return [p for p in ms if not any(other.keeps_more_than(p) and ms[other] <= ms[p] for other in ms)]


def _least(goal: Goal, ms: Ms, scores: Scores) -> float:
    dense = scores[dense_of(ms)]
    return dense - goal.value * abs(dense) - 1e-9  # rounding
