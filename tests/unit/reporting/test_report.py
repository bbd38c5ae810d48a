"""The report as a pure function of manifests: page, Markdown, terminal and the figures in them."""

import copy
import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from tests.helpers.manifests import COMMAND, run_manifests
from tests.helpers.page import Page
from toolkit import reporting
from toolkit.core.artifacts import Check
from toolkit.measure import size
from toolkit.reporting import formatting, sentences
from toolkit.reporting.budgets import budget_gains, budgets
from toolkit.reporting.claims_table import claims_table
from toolkit.reporting.manifests import stage_scores


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    return reporting.build([run_manifests(("films", "sst2"))], tmp_path_factory.mktemp("report")).read_text()


def test_page_fetches_nothing_and_has_no_script(page):
    assert Page(page).fetched == []
    assert "<script" not in page
    assert "default-src 'none'; style-src 'unsafe-inline'\"" in page
    assert not re.search(r"@import|url\(\s*['\"]?http", page.split("</style>")[0])


def test_plots_have_names_of_their_own(page):
    names = Page(page).identifiers
    assert len(names) == len(set(names))
    # Two plots for each task, and a curve for each of the 8 stages that trained; each has a title and a text.
    assert len([n for n in names if n.startswith("run-")]) == 2 * (2 * 2 + 8)


def test_page_shows_the_measured_figures_with_their_meaning(page):
    shown = re.sub(r"\s+", " ", Page(page).shown.replace("\u202f", " "))
    for expected in (
        "73.9 %",
        "71.2 to 76.4",
        "−8.3",
        "n = 1,066",
        "23.1 MB",
        "3.91×",
        "12.8 MB",
        "40.0×",
        "6.28 ms",
        "1.82×",
    ):
        assert expected in shown, expected
    assert "Accuracy criterion met: INT8 lost 0.81 % of the FP32 score in accuracy, loss limit 1.00 %." in shown
    assert "100,000 × 256, 3,200 times as many sequences" in shown
    for label in (size.VALUES, size.MASKED, size.ENTROPY, size.WHOLE_INT8, size.PLAIN, size.FILE, size.GZIP):
        assert formatting.size_label(label) in shown, label


def test_page_holds_checks_commands_and_provenance(page):
    shown = Page(page).shown
    assert "All passed." in shown
    assert COMMAND.format(v="sparse-int8", b=8) in shown
    assert "ef" * 32 in shown
    assert "c2724d6a63e2" in shown
    assert "10,662" in shown


def test_text_from_recipes_is_escaped(page):
    assert "films, split by film &lt;b&gt;" in page
    assert "film <b>" not in page


def test_what_was_left_out_and_why_is_in_the_page_the_markdown_and_the_terminal(tmp_path):
    page = reporting.build([run_manifests()], tmp_path)
    console = Console(file=io.StringIO(), width=100)
    console.print(reporting.console([run_manifests()]))
    for shown in (Page(page.read_text()).shown, (tmp_path / "report.md").read_text(), console.file.getvalue()):
        assert "sparse-engine-fp32 was not exported: no compiler & no luck." in shown
    console.print(reporting.console([[m for m in run_manifests() if m.stage == "export"]]))  # nothing was benchmarked
    assert "films: sparse-engine-fp32 was not exported: no compiler & no luck." in console.file.getvalue()


def test_rows_that_no_score_is_of_are_told_once_in_the_page_the_markdown_and_the_terminal(tmp_path):
    manifests = run_manifests()
    told = "3 rows with an empty text left out (first: dev.tsv:8)"
    for number, manifest in enumerate(manifests):
        if manifest.stage in ("task_teacher", "transfer", "quantize"):
            manifests[number] = manifest.model_copy(update={"metrics": manifest.metrics | {"rows_left_out": [told]}})
    page = reporting.build([manifests], tmp_path)
    console = Console(file=io.StringIO(), width=100)
    console.print(reporting.console([manifests]))
    for shown in (Page(page.read_text()).shown, (tmp_path / "report.md").read_text(), console.file.getvalue()):
        assert shown.count(f"{told}.") == 1
    trained = [m for m in manifests if m.stage in ("task_teacher", "transfer", "quantize")]
    console.print(reporting.console([trained]))  # nothing was benchmarked
    assert console.file.getvalue().count(f"films: {told}.") == 2


def test_markdown_tables_have_as_many_cells_in_each_row_as_in_their_head(tmp_path):
    reporting.build([run_manifests(("films", "sst2"))], tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    rulers = [i for i, line in enumerate(lines) if re.fullmatch(r"\|[-:|]+\|", line)]
    assert len(rulers) == 1 + 2 * 3 + 4  # what the tasks came to; three for each task; PyTorch, budget, checks, data
    for i in rulers:
        rows = [lines[i - 1]]
        rows += lines[i + 1 : next((k for k in range(i + 1, len(lines)) if not lines[k].startswith("|")), None)]
        assert len(rows) > 1
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {lines[i].count("|")}, lines[i - 1]


def test_scores_in_pytorch_are_told_where_no_ir_was_measured(tmp_path):
    trained = [m for m in run_manifests(("films", "sst2")) if m.stage not in ("export", "benchmark")]
    trained = [m for m in trained if (m.task, m.stage) != ("sst2", "quantize")]
    reporting.build([trained], tmp_path)
    markdown = (tmp_path / "report.md").read_text().replace("\u202f", " ")
    assert (
        "| films | accuracy | 1,066 | 82.2 % (79.8 to 84.4) | 74.5 % (71.8 to 77.0) | 73.9 % (71.2 to 76.4) |"
        in markdown
    )
    assert "| sst2 | accuracy | 1,066 | 82.2 % (79.8 to 84.4) | 74.5 % (71.8 to 77.0) |  |" in markdown
    stream = io.StringIO()
    Console(file=stream, width=80).print(reporting.console([trained]))
    for expected in ("sst2", "task_teacher", "74.5 %", "1,066"):
        assert expected in stream.getvalue().replace("\u202f", " "), expected


def test_a_second_dev_split_has_its_own_count_and_older_manifests_have_none(tmp_path):
    scores = {"accuracy": 0.7, "accuracy (mismatched)": 0.71}
    counts = {"accuracy": 9815, "accuracy (mismatched)": 9832}
    run = [m for m in run_manifests() if m.stage == "transfer"]
    for changes, expected in (({"counts": counts}, (9815, 9832)), ({}, (1066, 1066))):
        metrics = {k: v for k, v in run[0].metrics.items() if k != "counts"} | {"dev": scores} | changes
        rows = stage_scores([run[0].model_copy(update={"metrics": metrics})])
        assert [row.n for row in rows] == list(expected)


def test_speed_of_training_is_in_tokens_where_they_were_counted_and_in_sequences_elsewhere(tmp_path):
    reporting.build([run_manifests()], tmp_path)
    markdown = (tmp_path / "report.md").read_text().replace("\u202f", " ")
    assert "| 1,234 tokens/s |" in markdown
    assert markdown.count("| 160 sequences/s |") == 3, "32 in 0.2 s, in each of the task's stages"
    assert [b.speed for b in budgets(run_manifests()) if b.stage == "teacher"] == [None]


def test_terminal_table_fits_80_columns():
    stream = io.StringIO()
    Console(file=stream, width=80).print(reporting.console([run_manifests()]))
    shown = stream.getvalue().replace("\u202f", " ")
    for expected in ("sparse-int8", "73.9 %", "71.2 to 76.4", "−8.3", "23.1 MB", "3.91×", "40.0×", "6.28 ms"):
        assert expected in shown, expected
    assert "…" not in shown
    assert "4 of 4 checks passed." in shown


def test_several_tasks_are_compared_in_one_table_with_the_examples_behind_each_metric(tmp_path):
    two = run_manifests(("films", "mnli"))
    index = next(i for i, m in enumerate(two) if m.stage == "benchmark" and m.task == "mnli")
    metrics = two[index].metrics
    for variant in metrics["variants"].values():
        variant["accuracy"]["accuracy (mismatched)"] = variant["accuracy"]["accuracy"] + 0.01
    own = {
        "metrics": ["accuracy", "accuracy (mismatched)"],
        "counts": {"accuracy": 9815, "accuracy (mismatched)": 9832},
    }
    two[index] = two[index].model_copy(update={"metrics": metrics | own})
    reporting.build([two], tmp_path)
    lines = (tmp_path / "report.md").read_text().replace("\u202f", " ").splitlines()
    start = lines.index("## One sparse model, 2 tasks")
    rows = [line for line in lines[start : start + 12] if line.startswith("| ")]
    assert [row.split(" | ")[:3] for row in rows[1:]] == [
        ["| films", "accuracy", "1,066"],
        ["| mnli", "accuracy", "9,815"],
        ["| mnli", "accuracy (mismatched)", "9,832"],
    ]
    assert "−8.3" in rows[1]
    assert "9,815 (accuracy), 9,832 (accuracy (mismatched)) dev examples" in "\n".join(lines)
    stream = io.StringIO()
    Console(file=stream, width=100).print(reporting.console([two]))
    assert "2 tasks" in stream.getvalue()


def test_failed_checks_and_unmet_accuracy_criteria_are_reported(tmp_path):
    manifests = run_manifests()
    broken = manifests[1].model_copy(update={"checks": (Check(name="zeros", ok=False, measured=3.0, limit=0.0),)})
    benchmark = manifests[-1]
    promise = benchmark.metrics["accuracy_criterion"] | {"met": False, "measured": 0.031}
    missed = benchmark.model_copy(update={"metrics": benchmark.metrics | {"accuracy_criterion": promise}})
    changed = [manifests[0], broken, *manifests[2:-1], missed]
    html = reporting.build([changed], tmp_path).read_text()
    assert "1 failed." in html
    assert sentences.missed_criteria(manifests) == []
    (line,) = sentences.missed_criteria(changed)
    assert line.startswith("films: ")
    assert "3.10\u202f%" in line
    assert "criterion not met" in line


def test_run_without_a_dense_variant_or_a_student_still_has_a_report(tmp_path):
    manifests = [m for m in run_manifests(variants=("sparse-int8",)) if m.task]
    shown = Page(reporting.build([manifests], tmp_path).read_text()).shown
    assert "relative to dense-fp32" not in shown.split("n = ")[0]
    assert (
        "90.00\u202f% of the weights in these 36 matrices are zero, 90.00\u202f% to 90.04\u202f% per matrix." in shown
    )
    assert claims_table(manifests[-1]).variants[0].file.ratio is None


def test_run_that_stopped_before_the_benchmark_has_a_report(tmp_path):
    assert "student" in Page(reporting.build([run_manifests()[:2]], tmp_path).read_text()).shown


def test_dense_only_run_has_file_sizes_and_no_encoder_sizes(tmp_path):
    manifests = run_manifests(variants=("dense-fp32",))
    benchmark = manifests[-1]
    variants = {v: m | {"sizes": {size.FILE: 90, size.GZIP: 80}} for v, m in benchmark.metrics["variants"].items()}
    changed = {"variants": variants, "sizes_reference": {}, "accuracy_criterion": None}
    manifests[-1] = benchmark.model_copy(update={"metrics": benchmark.metrics | changed})
    shown = Page(reporting.build([manifests], tmp_path).read_text()).shown
    assert formatting.size_label(size.FILE) in shown
    assert formatting.size_label(size.VALUES) not in shown


def test_same_manifests_give_the_same_report(tmp_path):
    for name in ("a", "b"):
        reporting.build([run_manifests()], tmp_path / name)
    for file in ("report.html", "report.md"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_several_runs_are_shown_separately_with_the_effect_of_a_larger_budget(tmp_path):
    few, many = run_manifests(steps=250), run_manifests(steps=1000, shift=0.03)
    (gain,) = budget_gains([many, few])
    assert (gain.steps, gain.scores) == ((250, 1000), pytest.approx((0.739, 0.769)))
    html = reporting.build([few, many], tmp_path).read_text()
    names = Page(html).identifiers
    assert len(names) == len(set(names))
    assert "73.9\u202f% accuracy after 250 pruning steps, 76.9\u202f% after 1,000" in html


def test_nothing_is_said_of_more_steps_where_runs_differ_in_more_than_steps():
    few, many = run_manifests(steps=250), run_manifests(steps=1000, n=872)
    assert budget_gains([few, many]) == []
    assert budget_gains([few]) == []


def test_budgets_count_sequences_per_optimizer_step():
    found = {b.stage: b for b in budgets(run_manifests())}
    assert (found["student"].batch, found["student"].sequences) == (32, 250 * 32)
    assert found["student"].paper_sequences == 25_600_000
    assert found["transfer"].epochs == pytest.approx(9600 / 9596)
    assert found["task_teacher"].paper_epochs is None
    run = run_manifests()
    of_answers = [m.model_copy(update={"config": m.config | {"task": {"kind": "question_answering"}}}) for m in run]
    assert [b.paper_epochs for b in budgets(of_answers) if b.stage in ("transfer", "quantize")] == [8.0, 2.0]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formatting.percent(0.7391), "73.9 %"),
        (formatting.points(-0.083), "−8.3"),
        (formatting.points(0.0001), "±0.0"),
        (formatting.storage(8_493_466), "8.49 MB"),
        (formatting.storage(13_120), "13.1 kB"),
        (formatting.milliseconds(123.4), "123 ms"),
        (formatting.times(40.0), "40.0×"),
        (formatting.times(None), ""),
        (formatting.duration(83.4), "1 min 23 s"),
        (formatting.duration(7384), "2 h 03 min"),
        (formatting.number(25_600_000), "25,600,000"),
        (formatting.number(0.8234), "0.82"),
        (formatting.number(169.49), "169"),
        (formatting.times(9.9996), "10.0×"),
    ],
)
def test_figures_are_written_with_units_and_few_digits(written, expected):
    assert written.replace("\u202f", " ") == expected


def test_reporting_imports_neither_torch_nor_openvino_even_when_it_builds(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(run_manifests()[-1].model_dump_json())
    code = (
        "import sys, pathlib\nfrom toolkit import reporting\nfrom toolkit.core.artifacts import Manifest\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "reporting.build([[Manifest.model_validate_json((folder / 'manifest.json').read_text())]], folder)\n"
        "print({'torch', 'openvino', 'transformers'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def tuned(*, met: bool, objective: str = "modelsize") -> list:
    """The manifests of a run whose quantized model was tuned."""
    first = {"number": 0, "returned": [], "metric": 0.61, "loss": 0.18, "met": False, "seconds": 1.0}
    second = {"number": 1, "returned": ["layer.one", "layer.two"], "metric": 0.742, "loss": 0.004, "met": met}
    tuning = {
        "examples": 1000,
        "metric": "accuracy",
        "reference": 0.745,
        "kind": "relative",
        "limit": 0.01,
        "objective": objective,
        "trials": [first, second | {"seconds": 2.0}],
        "costs": {"1": 23_000_000.0},
        "kept": 1,
        "met": met,
        "returned": ["layer.one", "layer.two"],
        "sensitivity": {f"layer.{n}": 0.1 for n in ("one", "two", "three")},
    }
    return [
        m.model_copy(update={"metrics": m.metrics | {"tuning": tuning}}) if m.stage == "quantize" else m
        for m in run_manifests(("films",))
    ]


def test_trials_of_the_tuning_are_in_the_page_the_markdown_and_the_terminal(tmp_path):
    page = reporting.build([tuned(met=True)], tmp_path)
    console = Console(file=io.StringIO(), width=100)
    console.print(reporting.console([tuned(met=True)]))
    for shown in (Page(page.read_text()).shown, (tmp_path / "report.md").read_text(), console.file.getvalue()):
        words = " ".join(shown.split())
        assert "With all operations in INT8 the accuracy criterion is not met." in words
        assert "number 1 is selected: 2 of 3 operations kept in FP32" in words
        assert "61.00 %" in words
        assert "23.0 MB" in words
        assert "1,000 training examples" in words
    assert "layer.two" in page.read_text()


def test_a_failed_tuning_is_an_unmet_criterion_where_nothing_was_benchmarked():
    stages = [m for m in tuned(met=False) if m.stage != "benchmark"]
    (line,) = sentences.missed_criteria(stages)
    assert line.startswith("films: None of the 2 trials meets the accuracy criterion")
    assert sentences.missed_criteria([m for m in tuned(met=True) if m.stage != "benchmark"]) == []


def test_a_tuning_that_was_done_at_the_first_trial_is_not_talked_about():
    found = next(m for m in tuned(met=True) if m.stage == "quantize").metrics["tuning"]
    once = found | {"trials": [found["trials"][0] | {"met": True}], "kept": 0, "returned": []}
    assert sentences.tuning(once) == ""


def test_summary_names_the_latency_of_the_shipped_variant_on_the_sparse_engine():
    benchmark = next(m for m in run_manifests() if m.stage == "benchmark")
    assert "sparse-engine" not in sentences.summary(claims_table(benchmark), None)
    engine = copy.deepcopy(benchmark.metrics["variants"]["sparse-int8"])
    engine["performance"][0]["latency_ms_median"] /= 2
    benchmark.metrics["variants"]["sparse-engine-int8"] = engine
    said = sentences.summary(claims_table(benchmark), None).replace("\u202f", " ")
    assert said.endswith(
        "takes 6.28 ms, 1.82× the speed of dense-fp32; on the sparse engine (sparse-engine-int8) 3.14 ms,"
        " 3.64× the speed of dense-fp32."
    )


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("fewest examples that an IR answered", "evaluated examples, minimum over variants"),
        ("dense-fp32: examples answered", "dense-fp32: evaluated examples"),
        ("the whole dev split: 872", "complete dev split: 872"),
        ("x: mean |IR - torch| logit, share of their range", "x: mean |IR - torch| logit, relative to the logit range"),
        ("inc: sparsity of each matrix, off 0.9 by", "inc: sparsity of each matrix, deviation from 0.9"),
        ("non-zero weights outside the mask", "non-zero weights outside the mask"),
    ],
)
def test_stored_check_names_are_shown_in_the_reports_terms(stored, shown):
    assert formatting.check_text(stored) == shown


@pytest.mark.parametrize(("count", "said"), [(1, "1 core"), (2, "2 cores"), (None, "? cores")])
def test_cores_are_counted_in_words(count, said):
    assert formatting.hardware([{} if count is None else {"cores": count}]) == f", {said}"


def test_markdown_shows_names_as_text_whatever_they_contain(tmp_path):
    odd = "<img src=x onerror=a()> &lt; ![b](http://c) |\n# d"
    manifests = run_manifests()
    for number, m in enumerate(manifests):
        checks = tuple(c.model_copy(update={"name": odd}) for c in m.checks)
        changes = {"run": {"name": "r", "description": odd, "model": odd}, "data": {odd: {"sha256": "0", "rows": odd}}}
        manifests[number] = m.model_copy(update=changes | {"checks": checks})
    reporting.build([manifests], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "&lt;img src=x onerror=a()> &amp;lt; ![b]\\(http://c) \\| # d" in text
    assert "<img" not in text
    assert "](http" not in text
    assert "\n# d" not in text
    assert "    benchmark_app -m ../export/sparse-int8/openvino_model.xml" in text  # can be copied
    assert "-shape 'input_ids[1,128],attention_mask[1,128]" in text
