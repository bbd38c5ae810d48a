"""The report: a pure function of manifests, held to what they say."""

import io
import math
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from toolkit import reporting
from toolkit.artifacts import Artifact, Check, Manifest
from toolkit.measure import size
from toolkit.measure.size import Footprint, Matrix
from toolkit.reporting import figures, text
from toolkit.reporting.budgets import budgets, gains
from toolkit.reporting.headline import binomial_error, headline
from toolkit.reporting.runs import split_runs

LAYERS, HIDDEN, VOCABULARY = 6, 384, 30522
KINDS = {
    "attention.self.query": 1,
    "attention.self.key": 1,
    "attention.self.value": 1,
    "attention.output.dense": 1,
    "intermediate.dense": 4,
    "output.dense": 4,
}
MATRICES = [(f"bert.encoder.layer.{i}.{k}.weight", m * HIDDEN**2) for i in range(LAYERS) for k, m in KINDS.items()]
SPARSITY = 0.9
FOOTPRINT = Footprint(tuple(Matrix(n, round(n * (1 - SPARSITY))) for _, n in MATRICES), VOCABULARY * HIDDEN, 400_000)
PATTERN = {"sparsity": SPARSITY, "per_matrix": {n: SPARSITY + 0.0001 * (i % 5) for i, (n, _) in enumerate(MATRICES)}}
# Accuracy, .bin bytes, gzip bytes, ms at batch 1, ms at batch 8.
VARIANTS = {
    "dense-fp32": (0.822, 90.3e6, 83.6e6, 11.42, 88.1),
    "dense-int8": (0.819, 23.1e6, 17.9e6, 6.31, 47.9),
    "sparse-fp32": (0.745, 90.3e6, 50.1e6, 11.51, 88.7),
    "sparse-int8": (0.739, 23.1e6, 12.8e6, 6.28, 47.2),
}
COMMAND = (
    "benchmark_app -m ../export/{v}/openvino_model.xml -d CPU -hint none -nstreams 1 -nthreads 2 -api sync -nireq 1 "
    "-t 3 -infer_precision f32 -shape 'input_ids[{b},128],attention_mask[{b},128],token_type_ids[{b},128]' "
    "-i input_ids:inputs/b{b}_input_ids.npy,attention_mask:inputs/b{b}_attention_mask.npy"
)


def performance(variant: str, batch: int, ms: float) -> dict[str, Any]:
    samples = [ms * f for f in (0.99, 1.0, 1.03)]
    throughputs = [1000 * batch / s for s in samples]
    return {
        "batch": batch,
        "sequence_length": 128,
        "threads": 2,
        "streams": 1,
        "latency_ms_median": samples[1],
        "latency_ms_low": samples[0],
        "latency_ms_high": samples[2],
        "throughput_median": throughputs[1],
        "samples_ms": samples,
        "rounds": [{"median_ms": s, "throughput": t} for s, t in zip(samples, throughputs, strict=True)],
        "command": COMMAND.format(v=variant, b=batch),
    }


def measured(variant: str, shift: float = 0.0) -> dict[str, Any]:
    accuracy, file, gzip, one, eight = VARIANTS[variant]
    sizes = {size.FILE: int(file), size.GZIP: int(gzip)}
    value_bytes = 1 if variant.endswith("int8") else 4
    return {
        "accuracy": {"accuracy": accuracy + shift},
        "sizes": sizes | FOOTPRINT.sizes(value_bytes=value_bytes, sparse=variant.startswith("sparse")),
        "performance": [performance(variant, 1, one), performance(variant, 8, eight)],
    }


def curve(steps: int, *, pruned: bool = False) -> tuple[dict[str, float], ...]:
    noise = random.Random(steps)
    rows = []
    for step in range(5, steps + 1, 5):
        progress = step / steps
        loss = 0.8 + 3 * math.exp(-4 * progress) + noise.gauss(0, 0.06)
        row = {"step": float(step), "loss": loss, "task_loss": loss * 0.9, "kd_loss": loss * 1.1}
        row["learning_rate"] = 1e-4 * (1 - (progress % 0.1 if pruned and progress < 0.5 else progress))
        if pruned:
            row["sparsity"] = SPARSITY * (1 - max(0.0, 1 - 2 * (step // 20 * 20) / steps) ** 3)
        rows.append(row)
    return tuple(rows)


def manifest(stage: str, task: str | None = None, **values: Any) -> Manifest:
    folder = f"tasks/{task}/{stage}" if task else stage
    digest = format(abs(hash((stage, task))), "064x")
    defaults: dict[str, Any] = {
        "key": digest,
        "config": {},
        "inputs": {},
        "seed": 42,
        "artifact": Artifact(kind="measurement", path=folder, sha256=digest),
        "versions": {"python": "3.11.7", "torch": "2.13.0", "openvino": "2026.4.1"},
        "machine": {"cpu": "Some CPU @ 2.60GHz", "isa": ["avx2"], "cores": 2, "memory_gb": 7.8, "os": "Linux 6.1"},
        "commit": "c2724d6a63e2",
        "started": "2031-02-03T04:05:06+00:00",
        "seconds": 83.4,
    }
    return Manifest(stage=stage, task=task, **(defaults | values))


def task_manifests(task: str, n: int, shift: float, variants: tuple[str, ...]) -> list[Manifest]:
    trained = {"train_n": 9_596, "dev_n": n, "seconds_per_step": 0.2}
    train = {"batch_size": 32, "gradient_accumulation_steps": 1}
    lock = Check(name="non-zero weights outside the mask", ok=True, measured=0.0, limit=0.0)
    matmuls = [
        {
            "name": name.removesuffix(".weight"),
            "shape": [HIDDEN, HIDDEN],
            "stored_type": "i8",
            "zero_fraction": 0.9003,
            "input_fake_quantized": True,
        }
        for name, _ in MATRICES
    ]
    accuracies = {v: VARIANTS[v][0] + shift for v in variants}
    return [
        manifest(
            "task_teacher",
            task,
            config={"task_teacher": {"train": train}},
            metrics=trained | {"steps": 250, "examples_seen": 8000, "dev": {"accuracy": 0.822}},
            history=curve(250),
        ),
        manifest(
            "transfer",
            task,
            config={"transfer": {"distillation": {"train": train}}},
            metrics=trained | {"steps": 300, "examples_seen": 9600, "dev": {"accuracy": 0.745}} | PATTERN,
            history=curve(300),
            checks=(lock,),
        ),
        manifest(
            "quantize",
            task,
            config={"quantize": {"distillation": {"train": train}}},
            metrics=trained | {"steps": 100, "examples_seen": 3200, "dev": {"accuracy": 0.739}} | PATTERN,
            history=curve(100),
            checks=(lock,),
        ),
        manifest(
            "export",
            task,
            inputs={"quantize": "ab" * 32},
            metrics={
                "variants": {
                    v: {
                        "matmuls": matmuls,
                        "max_abs_diff": 0.0123,
                        "logit_range": 4.56,
                        "torch": {"accuracy": accuracies[v]},
                        "ir": {"accuracy": accuracies[v]},
                        "dev_n": n,
                    }
                    for v in variants
                },
                "left_out": {},
            },
            checks=(Check(name="sparse-int8: |IR - torch| of accuracy", ok=True, measured=0.0009, limit=0.01),),
        ),
        manifest(
            "benchmark",
            task,
            inputs={"export": "cd" * 32},
            metrics={
                "dev_n": n,
                "metrics": ["accuracy"],
                "note": "films, split by film <b>",
                "variants": {v: measured(v, shift) for v in variants},
                "sizes_reference": FOOTPRINT.reference(),
                "accuracy_criterion": {
                    "kind": "relative",
                    "metric": "accuracy",
                    "reference": 0.745,
                    "promised": 0.01,
                    "measured": 0.0081,
                    "met": True,
                },
            },
            data={"reviews.csv.bz2": {"sha256": "ef" * 32, "rows": 10_662}},
        ),
    ]


def run_manifests(
    tasks: tuple[str, ...] = ("films",),
    steps: int = 250,
    n: int = 1066,
    shift: float = 0.0,
    variants: tuple[str, ...] = tuple(VARIANTS),
) -> list[Manifest]:
    """A whole run as `pipeline.finished` would give it."""
    train = {"batch_size": 16, "gradient_accumulation_steps": 2}
    student = manifest(
        "student",
        config={"student": {"distillation": {"train": train}}},
        inputs={"teacher": "12" * 32},
        metrics={
            "steps": steps,
            "tokens_seen": 287_310,
            "target_sparsity": SPARSITY,
            "prunable_weights": FOOTPRINT.encoder,
            "backend": "inc",
        }
        | PATTERN,
        history=curve(steps, pruned=True),
        checks=(Check(name="sparsity of each matrix, off target by", ok=True, measured=0.0004, limit=0.001),),
        data={"corpus": {"train_sequences": 9_000, "train_tokens": 402_113}},
    )
    teacher = manifest(
        "teacher",
        config={"teacher": {"train": train}},
        metrics={"steps": 100, "tokens_seen": 114_924},
        history=curve(100),
    )
    return [teacher, student, *(m for t in tasks for m in task_manifests(t, n, shift, variants))]


class Page(HTMLParser):
    """What a browser would fetch, and what it would show outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.identifiers: list[str] = []
        self.shown = ""
        self._hidden = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden = tag in ("script", "style")
        self.fetched += [str(v) for k, v in attrs if k in ("src", "href", "srcset", "poster", "data", "action")]
        self.identifiers += [str(v) for k, v in attrs if k == "id"]

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        self.shown += "" if self._hidden else data


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    return reporting.build(run_manifests(("films", "sst2")), tmp_path_factory.mktemp("report")).read_text()


def test_page_fetches_nothing_and_holds_plotly_once(page):
    assert Page(page).fetched == []
    assert page.count("plotly.js v") == 1
    assert "default-src 'none'" in page
    assert not re.search(r"@import|url\(\s*['\"]?http", page.split("</style>")[0])


def test_plots_have_names_of_their_own(page):
    names = Page(page).identifiers
    assert len(names) == len(set(names))
    # Two plots for each task, the sparsity, and a curve for each of the 8 stages that trained.
    assert len([n for n in names if n.startswith("run-")]) == 2 * 2 + 1 + 8


def test_page_shows_the_measured_figures_with_their_meaning(page):
    shown = re.sub(r"\s+", " ", Page(page).shown.replace("\u202f", " "))
    for expected in ("73.9 % ± 1.3", "−8.3", "n = 1,066", "23.1 MB", "3.91×", "12.8 MB", "40.0×", "6.28 ms", "1.82×"):
        assert expected in shown, expected
    assert "8 bits may cost the sparse model 1.00 % of the FP32 score in accuracy; they cost 0.81 %" in shown
    assert "100,000 × 256, 3,200 times as many" in shown
    for label in (size.VALUES, size.MASKED, size.ENTROPY, size.WHOLE_INT8, size.PLAIN, size.FILE, size.GZIP):
        assert label in shown, label


def test_page_holds_checks_commands_and_provenance(page):
    shown = Page(page).shown
    assert "All hold." in shown
    assert COMMAND.format(v="sparse-int8", b=8) in shown
    assert "ef" * 32 in shown
    assert "c2724d6a63e2" in shown
    assert "10,662" in shown


def test_text_from_recipes_is_escaped(page):
    assert "films, split by film &lt;b&gt;" in page
    assert "film <b>" not in page


def test_markdown_tables_have_as_many_cells_in_each_row_as_in_their_head(tmp_path):
    reporting.build(run_manifests(("films", "sst2")), tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    rulers = [i for i, line in enumerate(lines) if re.fullmatch(r"\|[-:|]+\|", line)]
    assert len(rulers) == 2 * 2 + 3
    for i in rulers:
        rows = [lines[i - 1]]
        rows += lines[i + 1 : next((k for k in range(i + 1, len(lines)) if not lines[k].startswith("|")), None)]
        assert len(rows) > 1
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {lines[i].count("|")}, lines[i - 1]


def test_terminal_table_fits_80_columns():
    stream = io.StringIO()
    Console(file=stream, width=80).print(reporting.console(run_manifests()))
    shown = stream.getvalue().replace("\u202f", " ")
    for expected in ("sparse-int8", "73.9 % ± 1.3", "−8.3", "23.1 MB", "3.91×", "40.0×", "6.28 ms"):
        assert expected in shown, expected
    assert "…" not in shown
    assert "4 of 4 checks hold." in shown


def test_failed_checks_and_missed_promises_are_said(tmp_path):
    manifests = run_manifests()
    broken = manifests[1].model_copy(update={"checks": (Check(name="zeros", ok=False, measured=3.0, limit=0.0),)})
    benchmark = manifests[-1]
    promise = benchmark.metrics["accuracy_criterion"] | {"met": False, "measured": 0.031}
    missed = benchmark.model_copy(update={"metrics": benchmark.metrics | {"accuracy_criterion": promise}})
    changed = [manifests[0], broken, *manifests[2:-1], missed]
    html = reporting.build(changed, tmp_path).read_text()
    assert "1 do not hold." in html
    assert reporting.missed_criteria(manifests) == []
    (line,) = reporting.missed_criteria(changed)
    assert line.startswith("films: ")
    assert "3.10\u202f%" in line
    assert "missed" in line


def test_run_without_a_dense_variant_or_a_student_still_has_a_report(tmp_path):
    manifests = [m for m in run_manifests(variants=("sparse-int8",)) if m.task]
    shown = Page(reporting.build(manifests, tmp_path).read_text()).shown
    assert "against dense-fp32." not in shown.split("n = ")[0]
    assert "90.00\u202f% of these 36 matrices are zero, 90.00\u202f% to 90.04\u202f% in a single one." in shown
    assert headline(manifests[-1]).variants[0].file.ratio is None


def test_run_that_stopped_before_the_benchmark_has_a_report(tmp_path):
    assert "student" in Page(reporting.build(run_manifests()[:2], tmp_path).read_text()).shown


def test_dense_only_run_has_file_sizes_and_no_encoder_sizes(tmp_path):
    manifests = run_manifests(variants=("dense-fp32",))
    benchmark = manifests[-1]
    variants = {v: m | {"sizes": {size.FILE: 90, size.GZIP: 80}} for v, m in benchmark.metrics["variants"].items()}
    changed = {"variants": variants, "sizes_reference": {}, "accuracy_criterion": None}
    manifests[-1] = benchmark.model_copy(update={"metrics": benchmark.metrics | changed})
    shown = Page(reporting.build(manifests, tmp_path).read_text()).shown
    assert size.FILE in shown
    assert size.VALUES not in shown


def test_same_manifests_give_the_same_report(tmp_path):
    for name in ("a", "b"):
        reporting.build(run_manifests(), tmp_path / name)
    for file in ("report.html", "report.md"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_several_runs_are_told_apart_and_show_what_more_steps_bought(tmp_path):
    few, many = run_manifests(steps=250), run_manifests(steps=1000, shift=0.03)
    assert [len(r) for r in split_runs(few + many)] == [len(few), len(many)]
    (gain,) = gains([many, few])
    assert (gain.steps, gain.scores) == ((250, 1000), pytest.approx((0.739, 0.769)))
    html = reporting.build(few + many, tmp_path).read_text()
    names = Page(html).identifiers
    assert len(names) == len(set(names))
    assert "73.9\u202f% accuracy after 250 pruning steps, 76.9\u202f% after 1,000" in html


def test_nothing_is_said_of_more_steps_where_runs_differ_in_more_than_steps():
    few, many = run_manifests(steps=250), run_manifests(steps=1000, n=872)
    assert gains([few, many]) == []
    assert gains([few]) == []


def test_budgets_count_sequences_per_optimizer_step():
    found = {b.stage: b for b in budgets(run_manifests())}
    assert (found["student"].batch, found["student"].sequences) == (32, 250 * 32)
    assert found["student"].paper_sequences == 25_600_000
    assert found["transfer"].epochs == pytest.approx(9600 / 9596)
    assert found["task_teacher"].paper_epochs is None


def test_binomial_error_is_that_of_a_share():
    assert binomial_error(0.5, 100) == pytest.approx(0.05)
    assert binomial_error(1.0, 100) == 0


def test_sparsity_plot_has_a_row_for_each_kind_of_matrix_and_a_column_for_each_layer():
    plot = figures.sparsity({name: 0.9 for name, _ in MATRICES}).data[0]
    assert list(plot.x) == [str(i) for i in range(LAYERS)]
    assert list(plot.y) == list(KINDS)


def test_training_curve_shows_sparsity_only_where_it_changes():
    pruned = figures.training_curve(curve(100, pruned=True))
    locked = [row | {"sparsity": 0.9} for row in curve(100)]
    assert "sparsity" in [t.name for t in pruned.data]
    assert "sparsity" not in [t.name for t in figures.training_curve(locked).data]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (text.percent(0.7391), "73.9 %"),
        (text.points(-0.083), "−8.3"),
        (text.points(0.0001), "±0.0"),
        (text.megabytes(8_493_466), "8.49 MB"),
        (text.milliseconds(123.4), "123 ms"),
        (text.times(40.0), "40.0×"),
        (text.times(None), ""),
        (text.duration(83.4), "1 min 23 s"),
        (text.duration(7384), "2 h 03 min"),
        (text.number(25_600_000), "25,600,000"),
        (text.number(0.8234), "0.82"),
        (text.number(169.49), "169"),
        (text.times(9.9996), "10.0×"),
    ],
)
def test_figures_are_written_with_units_and_few_digits(written, expected):
    assert written.replace("\u202f", " ") == expected


def test_reporting_imports_neither_torch_nor_openvino_even_when_it_builds(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(run_manifests()[-1].model_dump_json())
    code = (
        "import sys, pathlib\nfrom toolkit import reporting\nfrom toolkit.artifacts import Manifest\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "reporting.build([Manifest.model_validate_json((folder / 'manifest.json').read_text())], folder)\n"
        "print({'torch', 'openvino', 'transformers'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
