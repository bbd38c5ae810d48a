"""The three tables of task kinds agree."""

from typing import get_args

import numpy as np
import pytest

from toolkit.data.batches import LABEL_KEYS
from toolkit.data.kinds.embedding import RANK_METRICS
from toolkit.data.task_kinds import EXAMPLES
from toolkit.models.task_heads import HEADS, pad_logits
from toolkit.pipeline.checkpoint_contents import _WIDTHS
from toolkit.recipe import KINDS, Kind, Task


def test_every_kind_has_rules_a_head_and_examples():
    assert set(get_args(Kind)) == set(KINDS) == set(HEADS) == set(EXAMPLES)
    assert {kind: head.width(()) for kind, head in HEADS.items() if not KINDS[kind].has_classes} == _WIDTHS


def test_the_description_of_kind_names_every_kind():
    said = (Task.model_fields["kind"].description or "").replace("_", " ")
    assert all(kind.replace("_", " ") in said for kind in get_args(Kind))


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_kinds_examples_measure_what_a_recipe_may_ask_for(kind):
    assert EXAMPLES[kind].kind == kind
    of_retrieval = set(RANK_METRICS) if kind == "embedding" else set()  # of `retrieval`, not chosen by name
    assert set(EXAMPLES[kind].metrics) == set(KINDS[kind].metrics) | of_retrieval
    assert set(HEADS[kind].synthetic_labels(3, 8)) <= set(LABEL_KEYS)


def test_logits_of_single_examples_are_padded_to_a_batch_in_both_layouts():
    assert pad_logits([np.array([1.0, 2.0]), np.array([3.0, 4.0])], per_token=False).tolist() == [[1, 2], [3, 4]]
    padded = pad_logits([np.ones((2, 1), np.float32), np.ones((2, 3), np.float32)], per_token=True)
    assert padded.shape == (2, 2, 3)
    assert padded[0, :, 1:].max() < -1e8
    assert padded[1].min() == 1
