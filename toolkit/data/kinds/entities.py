"""Entities of tag sequences, and their F1, precision and recall by seqeval's definition. No torch.

Tags are numbers: 0 is O, 1 + 2k is B and 2 + 2k is I of type k, the order of `recipe.kinds.token_classification`.
Source: seqeval 1.2.2, `metrics/sequence_labeling.py`, default mode (that of CoNLL-2000's conlleval).
"""

from collections.abc import Sequence

import numpy as np

Entity = tuple[int, int, int]  # type, first word, last word


def entities_of(tags: np.ndarray) -> set[Entity]:
    """Returns the entities of a sentence.

    An entity begins at B, and at an I that does not follow a tag of its type; it ends before the next tag that begins
    one, is O, or has another type. So a sequence that IOB2 does not allow has entities, too.

    Args:
        tags: Numbers of the tags, [words].
    """
    found: set[Entity] = set()
    start, kind = 0, -1  # of the current entity; -1: none
    for word, tag in enumerate([*np.asarray(tags).tolist(), 0]):
        own = (tag - 1) // 2 if tag else -1
        if kind >= 0 and (own != kind or tag % 2):
            found.add((kind, start, word - 1))
            kind = -1
        if own >= 0 and kind < 0:
            start, kind = word, own
    return found


def counts(truth: Sequence[np.ndarray], predicted: Sequence[np.ndarray]) -> dict[int, tuple[int, int, int]]:
    """Returns for each type of entity: how many are correct, predicted, and in the truth.

    An entity is correct if its type and both of its ends are.

    Args:
        truth: Numbers of the correct tags, [words] per sentence.
        predicted: Numbers of the predicted tags of the same sentences.
    """
    found: dict[int, list[int]] = {}
    for right, guess in zip(truth, predicted, strict=True):
        wanted, got = entities_of(right), entities_of(guess)
        for number, part in enumerate((wanted & got, got, wanted)):
            for kind, *_ in part:
                found.setdefault(kind, [0, 0, 0])[number] += 1
    return {kind: (one[0], one[1], one[2]) for kind, one in sorted(found.items())}


def _all(truth: Sequence[np.ndarray], predicted: Sequence[np.ndarray]) -> tuple[int, int, int]:
    by_type = counts(truth, predicted).values()
    return sum(c for c, _, _ in by_type), sum(p for _, p, _ in by_type), sum(t for _, _, t in by_type)


def precision(truth: Sequence[np.ndarray], predicted: Sequence[np.ndarray]) -> float:
    """Fraction of the predicted entities that are correct; 0 if there are none."""
    correct, guessed, _ = _all(truth, predicted)
    return correct / guessed if guessed else 0.0


def recall(truth: Sequence[np.ndarray], predicted: Sequence[np.ndarray]) -> float:
    """Fraction of the true entities that are predicted; 0 if there are none."""
    correct, _, wanted = _all(truth, predicted)
    return correct / wanted if wanted else 0.0


def f1(truth: Sequence[np.ndarray], predicted: Sequence[np.ndarray]) -> float:
    """Harmonic mean of precision and recall over all entities (micro F1): 2 * correct / (predicted + true)."""
    correct, guessed, wanted = _all(truth, predicted)
    return 2 * correct / (guessed + wanted) if correct else 0.0


def by_type(
    truth: Sequence[np.ndarray], predicted: Sequence[np.ndarray], types: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Returns F1, precision and recall of each type, and how many entities of it are true (`entities`)."""
    found = counts(truth, predicted)
    table = {}
    for number, name in enumerate(types):
        correct, guessed, wanted = found.get(number, (0, 0, 0))
        table[name] = {
            "f1": 2 * correct / (guessed + wanted) if correct else 0.0,
            "precision": correct / guessed if guessed else 0.0,
            "recall": correct / wanted if wanted else 0.0,
            "entities": float(wanted),
        }
    return table
