"""The first lines of a report: what to deploy and why, or that compression failed; and the exit code of `run`."""

import copy
import io

import pytest
from rich.console import Console

from tests.helpers.manifests import run_manifests
from tests.helpers.page import Page
from toolkit import reporting
from toolkit.cli.failures import exit_code
from toolkit.cli.report import show_report
from toolkit.core.artifacts import Check
from toolkit.core.errors import CheckFailed, CompressionFailed
from toolkit.reporting.verdicts import headline, verdicts

# Scores and milliseconds at batch 1.
GOOD = {
    "dense-fp32": (0.822, 11.4),
    "dense-int8": (0.819, 6.3),
    "sparse-fp32": (0.815, 11.5),
    "sparse-int8": (0.811, 6.2),
    "sparse-engine-int8": (0.810, 3.1),
}


def measured(scores, tasks=("films",), chance=None):
    """A run in which the variants have these scores and latencies."""
    run = run_manifests(tasks)
    for number, m in enumerate(run):
        if m.stage != "benchmark":
            continue
        metrics = copy.deepcopy(m.metrics)
        template = metrics["variants"]["sparse-int8"]
        metrics["variants"] = {}
        for name, (score, ms) in scores.items():
            row = copy.deepcopy(template) | {"accuracy": {"accuracy": score}, "chance": chance}
            factor = ms / row["performance"][0]["latency_ms_median"] if ms else 0
            for timed in row["performance"]:
                timed["samples_ms"] = [factor * s for s in timed["samples_ms"]]
                for key in ("latency_ms_median", "latency_ms_low", "latency_ms_high"):
                    timed[key] *= factor
            row["performance"] = row["performance"] if ms else []
            metrics["variants"][name] = row
        run[number] = m.model_copy(update={"metrics": metrics})
    return run


def shown(run, folder):
    """The page, the Markdown and the terminal, each without line breaks."""
    page = reporting.build([run], folder)
    console = Console(file=io.StringIO(), width=100)
    console.print(reporting.console([run]))
    texts = (Page(page.read_text()).shown, (folder / "report.md").read_text(), console.file.getvalue())
    return [" ".join(text.replace("\u202f", " ").split()) for text in texts]


def test_the_first_line_names_the_variant_to_deploy_and_why(tmp_path):
    run = measured(GOOD)
    for text in shown(run, tmp_path):
        first = text[:700]
        assert "films: Deploy sparse-engine-int8" in first
        assert (
            "reaches 81.0 % accuracy (at least 79.8 % is required, after what zeros and 8 bits may each lose) and "
            "takes 3.10 ms on Some CPU @ 2.60GHz at batch 1" in first
        )
        assert "Against dense-fp32: −1.2 points, 3.68× as fast, .bin file of the same size." in first
        assert "Against dense-int8: −0.9 points, 2.03× as fast" in first
    assert (tmp_path / "report.md").read_text().startswith("# films: Deploy sparse-engine-int8\n")
    page = (tmp_path / "report.html").read_text()
    assert '<tr class="chosen"><th scope="row">sparse-engine-int8<small>deploy this one</small>' in page
    assert page.count('class="chosen"') == 1
    assert "| **sparse-engine-int8** |" in (tmp_path / "report.md").read_text()
    assert reporting.failures(run) == []


LOSSY = {n: (s - 0.08 if "sparse" in n else s, ms) for n, (s, ms) in GOOD.items()}
SLOW = {n: (s, 9.0 if "sparse" in n else ms) for n, (s, ms) in GOOD.items()}


@pytest.mark.parametrize(
    ("run", "first", "why"),
    [
        (
            measured(LOSSY),
            "films: Compression failed: it loses more than the criterion allows. Deploy dense-int8",
            "The best compressed variant, sparse-fp32, reaches 73.5 % accuracy, −8.7 points against dense-fp32.",
        ),
        (
            measured(SLOW),
            "films: Compression failed: dense-int8 is faster. Deploy dense-int8",
            "sparse-fp32, takes 9.00 ms, dense-int8 6.30 ms.",
        ),
        (
            measured({n: (0.52 if "sparse" in n else s, ms) for n, (s, ms) in GOOD.items()}, chance=0.53),
            "films: Compression failed: the score is at chance. Deploy dense-int8",
            "reaches 52.0 % accuracy; up to 53.0 % is chance.",
        ),
        (
            measured({n: (0.5, ms) for n, (_, ms) in GOOD.items()}, chance=0.53),
            "films: dense-fp32 is at chance, so nothing can be compared. Deploy none of the variants",
            "Train the task teacher longer, or check labels and data.",
        ),
        (
            measured({"dense-fp32": (0.8, 10.0), "dense-int8": (0.7, 5.0)}),
            "films: Quantization failed: it loses more than the criterion allows. Deploy dense-fp32",
            "The best compressed variant, dense-int8, reaches 70.0 % accuracy, −10.0 points against dense-fp32.",
        ),
    ],
    ids=["loss", "slower", "chance", "reference", "quantization"],
)
def test_a_failed_compression_is_the_first_thing_said_and_exit_code_4(run, first, why, tmp_path, capsys):
    for text in shown(run, tmp_path):
        assert first in text[:200]
        assert why in text[:900]
    assert (tmp_path / "report.md").read_text().startswith(f"# {first}\n")
    assert '<p class="card verdict failed">' in (tmp_path / "report.html").read_text()
    with pytest.raises(CompressionFailed) as caught:
        show_report(run, tmp_path)
    assert str(caught.value).startswith(first)
    assert exit_code(caught.value) == 4
    assert exit_code(CheckFailed("x")) == 1
    assert first in capsys.readouterr().err


def test_without_dense_variants_the_cost_of_compression_is_unknown(tmp_path):
    run = measured({n: v for n, v in GOOD.items() if "sparse" in n})
    for text in shown(run, tmp_path):
        assert "films: Deploy sparse-engine-int8" in text[:100]
        assert "No dense variant was exported, so what compression cost is not known." in text
    assert reporting.failures(run) == []


def test_without_latency_no_variant_is_named(tmp_path):
    run = measured({n: (s, None) for n, (s, _) in GOOD.items()})
    for text in shown(run, tmp_path):
        assert "films: No variant can be named: latency was not measured" in text[:100]
        assert "Accurate enough: dense-fp32, dense-int8, sparse-fp32, sparse-int8, sparse-engine-int8." in text
    assert 'class="chosen"' not in (tmp_path / "report.html").read_text()


def test_several_tasks_have_a_line_each_failures_first(tmp_path):
    run = measured(GOOD, ("a", "b", "c"))
    broken = [m for m in measured(LOSSY, ("b",)) if m.stage == "benchmark"]
    run = [m for m in run if (m.stage, m.task) != ("benchmark", "b")] + broken
    found = verdicts(run)
    assert [(v.task, v.failed) for v in found] == [("b", True), ("a", False), ("c", False)]
    assert headline(found) == "3 tasks: compression failed for 1, worked for 2"
    for text in shown(run, tmp_path):
        places = [
            text.index(f"{task}: {what}") for task, what in (("b", "Compression"), ("a", "Deploy"), ("c", "Deploy"))
        ]
        assert places == sorted(places)
    assert len(reporting.failures(run)) == 1


def test_tasks_without_a_decision_are_not_counted_as_worked():
    untimed = {name: (score, None) for name, (score, _) in GOOD.items()}
    assert headline(verdicts(measured(untimed, ("one", "two")))) == "2 tasks: compression undecided for 2"


def test_a_faster_dense_variant_is_no_failure_where_latency_does_not_count():
    run = measured(
        GOOD | {"sparse-engine-int8": (0.81, 40.0), "sparse-int8": (0.811, 40.0), "sparse-fp32": (0.815, 40.0)}
    )
    assert "dense-int8 is faster" in reporting.failures(run)[0]
    assert reporting.failures(run, latency_counts=False) == []


def test_the_zeros_are_stated_where_a_dense_variant_is_chosen_too(tmp_path):
    slower = {name: (score, 40.0) for name, (score, _) in GOOD.items() if name.startswith("sparse")}
    for run, chosen in ((measured(GOOD), "sparse-engine-int8"), (measured(GOOD | slower), "dense-int8")):
        for text in shown(run, tmp_path):
            assert f"Deploy {chosen}" in text
            assert text.count("of the encoder's weights are zero") == 1


def test_a_criterion_that_zeros_or_8_bits_do_not_meet_is_said_first_and_fails(tmp_path):
    for key, said in (("zeros_criterion", "the sparse model lost 3.00 %"), ("accuracy_criterion", "INT8 lost 3.00 %")):
        run = measured(GOOD)
        found = {"kind": "relative", "metric": "accuracy", "promised": 0.02, "measured": 0.03, "met": False}
        run[-1] = run[-1].model_copy(update={"metrics": run[-1].metrics | {key: found}})
        for text in shown(run, tmp_path):
            assert "films: Accuracy criterion not met. The best variant is sparse-engine-int8" in text[:100]
            assert said in text[:300]
        page = (tmp_path / "report.html").read_text()
        assert "sparse-engine-int8<small>the best variant</small>" in page
        assert "deploy this one" not in page
        assert len(reporting.failures(run)) == 1


def test_a_stage_whose_checks_failed_is_said_first_with_the_key_to_change(tmp_path):
    run = [m for m in measured(GOOD) if m.stage != "benchmark"]
    check = Check(
        name="sparse-int8: |IR - torch| accuracy", ok=False, measured=0.07, limit=0.01, instead="`export.key`"
    )
    run[-1] = run[-1].model_copy(update={"checks": (check,)})
    for text in shown(run, tmp_path):
        assert "films: export failed 1 check" in text[:100]
        assert "sparse-int8: |IR - torch| accuracy: 0.07, limit 0.01; instead: `export.key`" in text.replace("\\|", "|")
    assert "instead" not in run[-1].model_dump_json(), "which older versions could not read"


def test_a_dense_model_of_an_older_run_is_not_called_sparse(tmp_path):
    run = measured({"sparse-fp32": (0.8, 10.0), "sparse-int8": (0.79, 5.0)})
    run = [m for m in run if m.task]
    zeros = {"sparsity": 0.0, "per_matrix": {"bert.encoder.layer.0.output.dense.weight": 0.0}}
    run = [m.model_copy(update={"metrics": m.metrics | zeros}) if "sparsity" in m.metrics else m for m in run]
    for text in shown(run, tmp_path):
        assert "sparse-fp32 (dense) reaches 80.0 %" in text
        assert "0.0 % of" not in text
