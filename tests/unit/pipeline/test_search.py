"""Which sizes a search has to score, which one it chooses, and the recipe that it writes; from made-up figures."""

import pytest

from toolkit.core.errors import UserError
from toolkit.ir.products import BREAK_EVEN
from toolkit.pipeline.search.goals import Goal, chosen, frontier, nearest, next_point, parse_goal
from toolkit.pipeline.search.points import Point, grid, overrides
from toolkit.pipeline.search.records import recorded
from toolkit.recipe.load import changed_text, load_recipe

DENSE, SHALLOW = Point(6), Point(3)
FINE, FINER = Point(6, 0.8, 1), Point(6, 0.7, 1)
COARSE, COARSER = Point(6, 0.8, 4), Point(6, 0.9, 4)
BOTH = Point(3, 0.8, 4)
MS = {DENSE: 10.0, SHALLOW: 5.2, FINER: 8.0, FINE: 6.0, COARSE: 5.0, COARSER: 4.0, BOTH: 2.5}
SCORES = {DENSE: 0.80, SHALLOW: 0.74, FINER: 0.797, FINE: 0.793, COARSE: 0.78, COARSER: 0.60, BOTH: 0.70}


def searched(goal, ms=MS, scores=SCORES):
    """Returns the chosen point, and the points that were scored, in order."""
    known, order = {DENSE: scores[DENSE]}, []
    while (point := next_point(goal, ms, known)) is not None:
        assert point not in known
        known[point] = scores[point]
        order.append(point)
    return chosen(goal, ms, known), order


def test_a_latency_is_met_with_the_best_score():
    assert searched(Goal("latency", 6.5)) == (FINE, [SHALLOW, FINE])
    assert searched(Goal("latency", 5.5))[0] == COARSE


def test_a_point_is_not_scored_if_one_that_keeps_more_is_fast_enough():
    _, order = searched(Goal("latency", 5.5))
    assert set(order) == {SHALLOW, COARSE}  # COARSER and BOTH keep less


def test_a_point_is_not_scored_if_one_that_keeps_more_is_as_fast():
    slow = MS | {COARSE: 6.0}  # as FINE, whose zeros are single
    assert COARSE not in searched(Goal("latency", 6.5), slow)[1]
    assert COARSE not in searched(Goal("loss", 0.2), slow)[1]


def test_a_speedup_counts_from_the_dense_model():
    assert searched(Goal("speedup", 2.0))[0] == COARSE
    assert searched(Goal("speedup", 2.4))[0] == BOTH  # 0.70, COARSER has 0.60
    assert searched(Goal("speedup", 2.4), scores=SCORES | {BOTH: 0.5})[0] == COARSER


@pytest.mark.parametrize(
    ("loss", "wanted"), [(0.001, None), (0.005, FINER), (0.01, FINE), (0.03, COARSE), (0.2, BOTH), (0.125, BOTH)]
)
def test_a_loss_is_met_by_the_fastest_point(loss, wanted):
    found, order = searched(Goal("loss", loss))
    assert found == wanted
    assert len(order) < len(MS) - 1


def test_the_loss_of_a_score_below_zero_is_relative_to_its_size():
    scores = {point: score - 1 for point, score in SCORES.items()}  # dense: -0.2
    assert searched(Goal("loss", 0.11), scores=scores)[0] == COARSE


def test_the_dense_model_is_chosen_where_it_is_fast_enough():
    assert searched(Goal("latency", 10.0)) == (DENSE, [])


def test_nothing_is_chosen_where_nothing_is_fast_enough_and_the_fastest_is_nearest():
    assert searched(Goal("latency", 2.0)) == (None, [])
    assert nearest(Goal("latency", 2.0), MS, {DENSE: 0.8}) == BOTH
    assert nearest(Goal("loss", 0.001), MS, SCORES) == FINER


def test_the_frontier_has_the_points_that_none_beats():
    assert frontier(MS, SCORES) == {DENSE, FINER, FINE, COARSE, BOTH}


@pytest.mark.parametrize(
    ("more", "less"), [(DENSE, BOTH), (FINER, FINE), (FINE, COARSE), (COARSE, COARSER), (COARSE, BOTH), (SHALLOW, BOTH)]
)
def test_fewer_zeros_smaller_blocks_and_more_layers_keep_more(more, less):
    assert more.keeps_more_than(less)
    assert not less.keeps_more_than(more)


@pytest.mark.parametrize("pair", [(SHALLOW, COARSER), (FINE, FINE), (Point(6, 0.9, 1), COARSE)])
def test_what_cannot_be_compared_keeps_no_more(pair):
    assert not pair[0].keeps_more_than(pair[1])
    assert not pair[1].keeps_more_than(pair[0])


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("latency", "4ms", 4),
        ("latency", "0.5 ms", 0.5),
        ("speedup", "3", 3),
        ("speedup", "1.5x", 1.5),
        ("loss", "1%", 0.01),
    ],
)
def test_a_goal_has_the_form_of_its_example(kind, text, value):
    assert parse_goal({"latency": None, "speedup": None, "loss": None} | {kind: text}) == Goal(kind, value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *(("latency", t) for t in ("4", "4s", "0ms", "-1ms", "nan ms", "٤ms", "")),
        *(("speedup", t) for t in ("0", "3ms")),
        *(("loss", t) for t in ("0.01", "100%", "0%")),
    ],
)
def test_a_goal_of_another_form_is_refused(kind, text):
    with pytest.raises(UserError, match="is not a possible value") as caught:
        parse_goal({kind: text})
    assert caught.value.where == f"--{kind}"


@pytest.mark.parametrize(("given", "what"), [({}, "is needed"), ({"latency": "4ms", "loss": "1%"}, "only one")])
def test_exactly_one_goal_is_needed(given, what):
    with pytest.raises(UserError, match=what):
        parse_goal(given)


@pytest.mark.parametrize(
    ("total", "depths"), [(6, {6, 4, 3}), (12, {12, 8, 6}), (24, {24, 16, 12}), (2, {2, 1}), (1, {1})]
)
def test_the_grid_has_all_two_thirds_and_half_of_the_layers(total, depths):
    points = grid(total)
    assert points[0] == Point(total)
    assert {point.layers for point in points} == depths
    assert len(set(points)) == len(points) == 9 * len(depths)
    assert len({point.file_name for point in points}) == len(points)


def test_the_sparse_engine_computes_every_sparse_size_of_the_grid():
    assert all(point.zeros >= BREAK_EVEN[f"{point.block}x1"] for point in grid(6) if point.zeros)


RECIPE = """\
name: r
model: {{source: {model}}}
corpus: {{files: [{text}]}}
tasks: {{toy: {{train: {train}, dev: {dev}, transfer: {own}}}}}
student: {{{student}, distillation: {{train: {{steps: 9}}}}}}
{more}
quantize: {{quantization: {{approach: post_training_static_quant}}}}
export: {{}}
"""
WEIGHTS = "approach: {weight_compression: {target_sparsity: 0.9"
STUDENTS = {
    "reconstructed": "pruning: {reconstruction: {method: obs}}",
    "ramp": f"pruning: {{backend: magnitude, {WEIGHTS}, start_epoch: 1, end_epoch: 3}}}}}}",
    "ramp of a pruner": f"pruning: {{{WEIGHTS}, pruners: [{{end_step: 5, target_sparsity: 0.5}}]}}}}}}",
    "shallow": "layers: 1, pruning: null",
}
DISTILLED = "{reconstruction: {}, distillation: {train: {steps: 2}}}"
TRANSFERS = {"recipe's": ("{}", f"transfer: {DISTILLED}\ntask_teacher: {{train: {{steps: 2}}}}")}
TRANSFERS["task's own"] = (DISTILLED, "task_teacher: {train: {steps: 2}}")


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("point", [FINE, BOTH, SHALLOW], ids=lambda point: point.file_name)
def test_a_recipe_trains_the_size_that_it_is_overridden_with(
    point, student, transfer, tiny_bert, tiny_text, tiny_task_files, tmp_path
):
    own, more = TRANSFERS[transfer]
    files = {"model": tiny_bert, "text": tiny_text, "train": tiny_task_files.train, "dev": tiny_task_files.dev}
    path = tmp_path / "r.yaml"
    layers = None if point.layers == 6 else [1]
    if student == "shallow":
        own, more = own.replace("reconstruction: {}, ", ""), more.replace("reconstruction: {}, ", "")
    path.write_text(RECIPE.format(**files, student=STUDENTS[student], own=own, more=more))
    changes = overrides(load_recipe(path), point, layers)
    made = load_recipe(path, changes)
    assert made.student.layers == (None if layers is None else (1,))
    transfer_section = made.section("transfer", "toy")
    assert (transfer_section.reconstruction is None) == (layers is not None or student == "shallow")
    assert ("sparse-engine-int8" in made.export.variants) == (point.zeros > 0)
    if point.zeros:
        (pruner,) = made.student.pruning.approach.weight_compression.resolve(10)
        assert (pruner.target_sparsity, pruner.pattern) == (point.zeros, f"tile_pattern_{point.block}x1")
        assert pruner.start_step == pruner.end_step == 0
        method = made.student.pruning.reconstruction.method
        assert method == ("obs" if student == "reconstructed" else "admm")
    else:
        assert made.student.pruning is None
    other = tmp_path / "elsewhere" / "found.yaml"
    other.parent.mkdir()
    other.write_text(changed_text(path, changes))
    assert load_recipe(other) == made


def test_a_result_is_computed_again_if_it_depends_on_something_else(tmp_path):
    file, calls = tmp_path / "r.json", []
    for depends_on in (1, 1, 2, 2):
        assert recorded(file, depends_on, lambda: calls.append(1) or len(calls)) == depends_on
    assert len(calls) == 2
    file.write_text("[1]")
    with pytest.raises(UserError, match="not a result of a search"):
        recorded(file, 2, lambda: 3)
