"""The report of tags of words: F1 by type of entity, and no word of accuracy."""

import io
import re

import pytest
from rich.console import Console

from tests.helpers.manifests import run_manifests
from tests.helpers.page import Page
from toolkit import reporting
from toolkit.reporting import formatting, sentences


@pytest.fixture(scope="module")
def manifests():
    """Manifests of a run with entities of two types, measured by F1 alone."""
    manifests = run_manifests(("entities",))
    for m in manifests:
        for scores in [m.metrics["dev"]] if "dev" in m.metrics else []:
            scores["f1"] = scores.pop("accuracy")
    (found,) = [m.metrics for m in manifests if m.stage == "benchmark"]
    for variant in found["variants"].values():
        variant["accuracy"] = {"f1": variant["accuracy"].pop("accuracy")}
    one = {"f1": 0.614, "precision": 0.5, "recall": 0.8, "entities": 1300.0}
    found["by_type"] = {name: {"ORG": one | {"entities": 7.0, "f1": 0.25}, "PER": one} for name in found["variants"]}
    found["metrics"], found["accuracy_criterion"]["metric"] = ["f1"], "f1"
    return manifests


@pytest.fixture(scope="module")
def report(manifests, tmp_path_factory):
    """Texts of the page and of the Markdown file."""
    return texts(manifests, tmp_path_factory.mktemp("report"))


def texts(manifests, folder):
    page = reporting.build([manifests], folder)
    return Page(page.read_text()).shown, page.with_suffix(".md").read_text()


def shown_by_terminal(manifests):
    stream = io.StringIO()
    Console(file=stream, width=80).print(reporting.console([manifests]))
    return stream.getvalue().replace("\u202f", " ")


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


def test_intervals_are_named_only_where_a_score_has_one(manifests, report, tmp_path):
    of_accuracy = run_manifests(("entities",))
    with_intervals = (*texts(of_accuracy, tmp_path), *(shown_by_terminal(found) for found in parts(of_accuracy)))
    assert [("interval" in text.lower()) for text in with_intervals] == [True] * 4
    without = (*report, *(shown_by_terminal(found) for found in parts(manifests)))
    assert [("interval" in text.lower()) for text in without] == [False] * 4


def parts(manifests):
    """The complete run, and the same before its benchmark, which the terminal shows in another table."""
    return manifests, [m for m in manifests if m.stage != "benchmark"]
