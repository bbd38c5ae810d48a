"""The variant that serves a target best, and the rows of a run for scripts."""

import copy
from pathlib import Path

import pytest

from tests.helpers.manifests import run_manifests
from toolkit.reporting.best import best_variant
from toolkit.reporting.rows import stage_rows, variant_rows

ACCURATE = {"dense-fp32": 0.90, "dense-int8": 0.90, "sparse-fp32": 0.897, "sparse-int8": 0.896}
FAST = {"dense-fp32": 9.0, "dense-int8": 3.0, "sparse-fp32": 2.0, "sparse-int8": 3.5}


def run(scores: dict[str, float]):
    """The manifests of a run whose task has these scores, and latencies that no two variants share."""
    manifests = copy.deepcopy(run_manifests())
    (benchmark,) = [m for m in manifests if m.stage == "benchmark"]
    for name, variant in benchmark.metrics["variants"].items():
        variant["accuracy"]["accuracy"] = scores[name]
        for timed in variant["performance"]:
            timed |= {"latency_ms_median": FAST[name], "samples_ms": [FAST[name]] * 3}
    return manifests, benchmark.task


@pytest.mark.parametrize(
    ("target", "changed", "name"),
    [
        ("latency", {}, "sparse-fp32"),
        ("latency", {"sparse-fp32": 0.5}, "dense-int8"),
        ("accuracy", {}, "sparse-fp32"),
        ("accuracy", {"sparse-fp32": 0.895}, "sparse-int8"),
        ("accuracy", {"sparse-fp32": 0.5, "sparse-int8": 0.5}, "dense-fp32"),
    ],
)
def test_the_best_variant_is_one_that_is_accurate_enough(target, changed, name):
    manifests, task = run(ACCURATE | changed)
    assert best_variant(manifests, task, target).name == name


def test_the_smallest_file_is_the_best_for_size():
    manifests, task = run(ACCURATE)
    assert best_variant(manifests, task, "size").name == "sparse-int8"  # as small as dense-int8, and smaller packed
    assert best_variant(manifests, "no-such-task", "size") is None


def test_rows_are_flat_and_say_where_each_variant_is():
    manifests, task = run(ACCURATE)
    rows = {row["variant"]: row for row in variant_rows(manifests, Path("runs/x"))}
    assert rows.keys() == ACCURATE.keys()
    dense, sparse = rows["dense-fp32"], rows["sparse-int8"]
    assert sparse["folder"] == f"runs/x/tasks/{task}/export/sparse-int8"
    assert (sparse["accuracy"], sparse["latency_ms"], sparse["latency_batch"]) == (0.896, 3.5, 1)
    assert sparse["speed_up"] == pytest.approx(9.0 / 3.5)
    assert dense["speed_up"] is None or dense["speed_up"] == 1
    assert not any(isinstance(value, dict | list) for row in rows.values() for value in row.values())
    assert {row["stage"] for row in stage_rows(manifests, Path("runs/x"))} >= {"transfer", "benchmark"}
