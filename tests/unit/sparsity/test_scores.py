"""Importance scores against their formulas, and their table against the recipe's prune types."""

from typing import get_args

import torch

from toolkit.recipe import LOCK
from toolkit.recipe.pruning import GRADIENT_SCORES, PruneType
from toolkit.sparsity.scores import SCORES

WEIGHT = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
GRADIENT = torch.tensor([[-0.5, 0.25], [4.0, 0.0]])
PREVIOUS = torch.tensor([[1.0, 0.0], [2.0, 1.0]])


def test_every_prune_type_but_the_lock_has_a_score():
    assert set(SCORES) == set(get_args(PruneType)) - {LOCK}


def test_only_the_scores_that_the_recipe_lists_look_at_gradients():
    for name, score in SCORES.items():
        changed = not torch.equal(score(WEIGHT, GRADIENT, None), score(WEIGHT, 2 * GRADIENT, None))
        assert changed == (name in GRADIENT_SCORES), name


def test_scores_are_those_of_their_papers():
    assert SCORES["magnitude"](WEIGHT, None, None).tolist() == [[1.0, 2.0], [0.0, 3.0]]
    assert SCORES["snip"](WEIGHT, GRADIENT, PREVIOUS).tolist() == [[0.5, 0.5], [0.0, 0.0]]
    assert SCORES["gradient_sensitivity"](WEIGHT, GRADIENT, PREVIOUS).tolist() == [[0.5, 0.25], [4.0, 0.0]]
    momentum = SCORES["snip_momentum"](WEIGHT, GRADIENT, PREVIOUS)
    assert torch.allclose(momentum, torch.tensor([[1.4, 0.5], [1.8, 0.9]]))
    assert torch.equal(SCORES["snip_momentum"](WEIGHT, GRADIENT, None), SCORES["snip"](WEIGHT, GRADIENT, None))
