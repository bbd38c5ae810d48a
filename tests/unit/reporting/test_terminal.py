"""What a report prints in a terminal of 80 columns."""

import io

import pytest
from rich.console import Console

from tests.helpers.manifests import run_manifests
from toolkit import reporting


def printed(manifests) -> str:
    stream = io.StringIO()
    Console(file=stream, width=80).print(reporting.console([manifests]))
    return stream.getvalue().replace("\u202f", " ").replace("\u00a0", " ")


@pytest.mark.parametrize(("metric", "expected"), [("accuracy", True), ("spearman_cosine", False)])
def test_intervals_are_explained_only_where_there_are_some(metric, expected):
    trained = next(m for m in run_manifests() if m.stage == "transfer")
    metrics = {k: v for k, v in trained.metrics.items() if k != "counts"} | {"dev": {metric: 0.7}}
    shown = printed([trained.model_copy(update={"metrics": metrics})])
    assert "70.0" in shown
    assert ("95 % interval" in shown) == expected


def test_three_metrics_fit_without_a_cut_name_or_number():
    manifests = run_manifests(("sentences",))
    (found,) = [m.metrics for m in manifests if m.stage == "benchmark"]
    for variant in found["variants"].values():
        score = variant["accuracy"].pop("accuracy")
        variant["accuracy"] = {"spearman_cosine": score, "dense_cosine": score, "dense_cosine_p1": 1.0}
    found["metrics"] = ["spearman_cosine", "dense_cosine", "dense_cosine_p1"]
    found["counts"] = dict.fromkeys(found["metrics"], 1066)
    table = printed(manifests).partition("bold: to")[0].partition("second line")[0]
    assert "spearman_" in table
    assert "100.0 %" in table
    assert "…" not in table
    assert "gzip" not in table
