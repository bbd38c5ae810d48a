"""Assignment of matrices to pruners, and the reachable sparsity."""

import subprocess
import sys

import pytest

from toolkit.core.errors import UserError
from toolkit.recipe import ResolvedPruner, WeightCompression
from toolkit.sparsity.assignment import assign_matrices, reachable_sparsity

NAMES = [
    f"bert.encoder.layer.{layer}.{matrix}.weight"
    for layer in (0, 1, 10)
    for matrix in ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
]


def resolved(*pruners: dict, **compression) -> tuple[ResolvedPruner, ...]:
    return WeightCompression.model_validate(compression | {"pruners": list(pruners) or [{}]}).resolve()


def assigned(*pruners: dict, **compression) -> list[list[str]]:
    return assign_matrices(resolved(*pruners, **compression), NAMES, "here")


def test_one_pruner_without_names_gets_everything():
    assert assigned() == [NAMES]


def test_names_are_regular_expressions_and_the_rest_goes_to_the_pruner_without():
    attention, rest = assigned({"names": ["attention"]}, {})
    assert attention == [n for n in NAMES if ".attention." in n]
    assert rest == [n for n in NAMES if ".attention." not in n]


def test_a_whole_name_means_that_one_matrix():
    (found,) = assigned({"names": ["bert.encoder.layer.1.output.dense.weight"]})
    assert found == ["bert.encoder.layer.1.output.dense.weight"]


def test_excluded_names_stay_dense_whoever_excludes_them():
    first, rest = assigned(
        {"names": ["attention"], "exclude_names": [r"layer\.10\."]}, {"exclude_names": ["attention"]}
    )
    assert first == [n for n in NAMES if ".attention." in n and "layer.10." not in n]
    assert rest == [n for n in NAMES if ".attention." not in n]
    (all_but,) = assigned(exclude_names=[r"output\.dense"])
    assert all_but == [n for n in NAMES if not n.endswith("output.dense.weight")]


def test_order_of_the_names_is_kept():
    (found,) = assigned({"names": ["output", "query"]})
    assert found == [n for n in NAMES if "output" in n or "query" in n]


@pytest.mark.parametrize(
    ("pruners", "words", "instead"),
    [
        ([{"names": ["attn"]}], "'attn' matches no prunable matrix", "bert.encoder.layer.0"),
        (
            [{"names": ["query"]}, {"names": ["attention"]}],
            "by pruners 1 and 2: 'query' and 'attention'",
            "exclude_names",
        ),
        ([{"names": ["."]}, {}], "pruner 2 gets no matrix", "remove this pruner"),
        ([{"names": ["query"], "exclude_names": ["layer"]}], "pruner 1 gets no matrix", "fewer exclude_names"),
    ],
)
def test_names_that_do_not_fit_are_a_user_error(pruners, words, instead):
    with pytest.raises(UserError, match=words) as caught:
        assigned(*pruners)
    assert caught.value.where == "here.pruners"
    assert instead in caught.value.instead


@pytest.mark.parametrize(
    ("pattern", "target", "shape", "expected"),
    [
        ("tile_pattern_1x1", 0.9, (32, 32), 921 / 1024),
        ("tile_pattern_4x1", 0.9, (32, 32), 230 / 256),
        ("tile_pattern_1x16", 0.9, (4, 16), 3 / 4),
        ("2:4", 0.5, (32, 32), 0.5),
        ("1:3", 1 / 3, (32, 33), 1 / 3),
    ],
)
def test_the_sparsity_that_can_be_reached_counts_whole_blocks(pattern, target, shape, expected):
    (pruner,) = resolved(pattern=pattern, target_sparsity=target)
    assert reachable_sparsity(pruner, {"w": shape}) == {"w": pytest.approx(expected)}


def test_a_global_domain_holds_only_the_whole_to_the_target():
    (pruner,) = resolved(prune_domain="global", target_sparsity=0.7)
    assert reachable_sparsity(pruner, {"a": (3, 3), "b": (5, 5)}) == {"a": 0.7, "b": 0.7}


@pytest.mark.parametrize(
    ("compression", "fits"),
    [
        ({"end_step": 0}, False),
        ({"end_step": 10, "initial_sparsity": 0.1}, False),
        ({"end_step": 10}, True),
        ({"start_step": 1, "end_step": 1}, True),
    ],
)
def test_gradients_cannot_decide_before_the_first_step(compression, fits):
    (pruner,) = resolved({"prune_type": "snip"}, **compression)
    (by_magnitude,) = resolved(**compression)
    assert reachable_sparsity(by_magnitude, {"w": (4, 5)}) == {"w": 0.9}
    if fits:
        assert reachable_sparsity(pruner, {"w": (4, 5)}) == {"w": 0.9}
        return
    with pytest.raises(UserError, match="snip needs gradients, but none are available before step 0") as caught:
        reachable_sparsity(pruner, {"w": (4, 5)})
    assert "start_step: 1" in caught.value.instead


def test_assignment_loads_no_torch():
    code = "import sys, toolkit.sparsity.assignment, toolkit.pipeline.preflight; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
