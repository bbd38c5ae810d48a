"""The report of tags of words: F1 by type of entity, and no word of accuracy."""

import re

import pytest

from tests.helpers.manifests import run_manifests
from tests.helpers.page import Page
from toolkit import reporting
from toolkit.reporting import formatting, sentences


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Texts of the page and of the Markdown file of a run with entities of two types."""
    manifests = run_manifests(("entities",))
    (found,) = [m.metrics for m in manifests if m.stage == "benchmark"]
    for variant in found["variants"].values():
        variant["accuracy"] = {"f1": variant["accuracy"].pop("accuracy")}
    one = {"f1": 0.614, "precision": 0.5, "recall": 0.8, "entities": 1300.0}
    found["by_type"] = {name: {"ORG": one | {"entities": 7.0, "f1": 0.25}, "PER": one} for name in found["variants"]}
    found["metrics"], found["accuracy_criterion"]["metric"] = ["f1"], "f1"
    page = reporting.build([manifests], tmp_path_factory.mktemp("report"))
    return Page(page.read_text()).shown, page.with_suffix(".md").read_text()


def test_the_report_has_f1_by_type_the_most_frequent_first(report):
    for text in report:
        plain = re.sub(r"\s+", " ", text.replace("\u202f", " "))
        part = plain[plain.index("F1 by type of entity") : plain.index("Size by definition")]
        assert part.index("PER") < part.index("ORG")
        assert "1,300" in part
        assert "61.4 %" in part
        assert "25.0 %" in part


def test_the_report_speaks_of_f1_where_there_is_no_accuracy(report):
    for text in report:
        plain = re.sub(r"\s+", " ", text.replace("\u202f", " "))
        assert "Criterion met: INT8 lost 0.81 % of the FP32 score in f1" in plain
        of_task = plain[plain.index("Criterion met") : plain.index("Size by definition")]
        assert "accuracy" not in of_task.lower()
    assert (sentences.criterion_name("f1"), sentences.criterion_name("accuracy (mismatched)")) == (
        "criterion",
        "accuracy criterion",
    )
    assert formatting.percent(0.614).startswith("61.4")
