"""Manifests of other versions, damaged or edited: each is named with its file and key, and shows no traceback."""

import json

import pytest

from tests.helpers.manifests import run_manifests
from toolkit.cli.bench import _exported
from toolkit.cli.inspect import inspection
from toolkit.core.artifacts import write_manifest
from toolkit.core.errors import UserError
from toolkit.measure.manifest_schema import require_recorded
from toolkit.pipeline.graph import finished_manifests
from toolkit.reporting import build

TUNING = {
    **{"examples": 100, "metric": "accuracy", "reference": 0.8, "kind": "relative", "limit": 0.01, "met": True},
    "trials": [{"number": 0, "returned": [], "metric": 0.8, "loss": 0.0, "met": True, "seconds": 1.0}],
    **{"objective": "performance", "costs": {"0": 1.0}, "kept": 0, "returned": [], "sensitivity": {}},
}


@pytest.fixture
def run(tmp_path):
    """A run folder with the manifest of each stage."""
    for manifest in run_manifests():
        folder = tmp_path / manifest.artifact.path
        folder.mkdir(parents=True)
        if manifest.stage == "quantize":
            manifest = manifest.model_copy(update={"metrics": manifest.metrics | {"tuning": TUNING}})
        write_manifest(folder, manifest)
    return tmp_path


def change(run, stage, key, value):
    """Sets a value of a stage's manifest; `...` deletes it."""
    path = run / stage / "manifest.json"
    content = json.loads(path.read_text())
    *parents, last = key.split("/")
    inner = content
    for name in parents:
        inner = inner[int(name) if isinstance(inner, list) else name]
    if value is ...:
        del inner[last]
    else:
        inner[int(last) if isinstance(inner, list) else last] = value
    path.write_text(json.dumps(content))
    return str(path)


BENCHMARK, EXPORT, QUANTIZE = "tasks/films/benchmark", "tasks/films/export", "tasks/films/quantize"
VARIANT = "metrics/variants/sparse-int8"
WRONG = [
    (BENCHMARK, "metrics/variants", ..., "metrics.variants"),
    (BENCHMARK, "metrics/variants", {}, "metrics.variants"),
    (BENCHMARK, "metrics/variants/other", {}, "metrics.variants.other"),
    (BENCHMARK, "metrics/dev_n", 0, "metrics.dev_n"),
    (BENCHMARK, "metrics/dev_n", "1066", "metrics.dev_n"),
    (BENCHMARK, "metrics/metrics", [], "metrics.metrics"),
    (BENCHMARK, "metrics/metrics", ["f1"], "metrics: Value error, a variant has no score of a metric"),
    (BENCHMARK, "metrics/sizes_reference", [], "metrics.sizes_reference"),
    (BENCHMARK, "metrics/accuracy_criterion/promised", ..., "metrics.accuracy_criterion.promised"),
    (BENCHMARK, f"{VARIANT}/accuracy/accuracy", 1.5, "metrics.variants.sparse-int8.accuracy.accuracy"),
    (BENCHMARK, f"{VARIANT}/accuracy/accuracy", -0.5, "metrics.variants.sparse-int8.accuracy"),
    (BENCHMARK, f"{VARIANT}/sizes", {}, "metrics.variants.sparse-int8.sizes"),
    (BENCHMARK, f"{VARIANT}/performance/0/batch", 0, "metrics.variants.sparse-int8.performance.0.batch"),
    (BENCHMARK, f"{VARIANT}/performance/0/latency_ms_median", None, "metrics.variants.sparse-int8.performance.0"),
    (BENCHMARK, f"{VARIANT}/performance", 7, "metrics.variants.sparse-int8.performance"),
    (EXPORT, f"{VARIANT}/ir", {}, "metrics.variants.sparse-int8.ir"),
    (EXPORT, f"{VARIANT}/ir", {"f1": 0.5}, "metrics: Value error, the variants have scores of different metrics"),
    (EXPORT, "metrics/left_out", ["sparse-int8"], "metrics.left_out"),
    (QUANTIZE, "metrics/tuning/trials", [], "metrics.tuning.trials"),
    (QUANTIZE, "metrics/tuning/costs", None, "metrics.tuning.costs"),
    (QUANTIZE, "metrics/rows_left_out", 7, "metrics.rows_left_out"),
    (QUANTIZE, "metrics/dev/accuracy", "high", "metrics.dev.accuracy"),
    ("student", "metrics/sparsity", ..., "metrics.sparsity"),
    ("student", "metrics/sparsity", 90, "metrics.sparsity"),
    ("student", "metrics/steps", 0, "metrics: Value error, a student that was neither trained nor reconstructed"),
    ("student", "metrics/steps", -1, "metrics.steps"),
    ("student", "metrics/reconstruction", {"layers": {}}, "metrics.reconstruction"),
    ("student", "metrics/steps", 10**30, "metrics.steps"),
    ("student", "metrics/per_matrix", [0.9], "metrics.per_matrix"),
    ("student", "config/student", "none", "config.student"),
    ("student", "config/student/distillation/train/batch_size", "16", "config.student.distillation.train.batch_size"),
    ("student", "seconds", -1, "seconds"),
    ("student", "history/0/loss", 1e300, "history.0.loss"),
    ("student", "history/0/step", ..., "history.0"),
    ("student", "stage", "teacher", "this is the manifest of teacher"),
    ("student", "task", "films", "this is the manifest of films/student"),
]


@pytest.mark.parametrize(("stage", "key", "value", "named"), WRONG)
def test_a_manifest_that_a_report_cannot_show_is_named_with_its_key(run, stage, key, value, named):
    where = change(run, stage, key, value)
    with pytest.raises(UserError) as caught:
        finished_manifests(run)
    assert caught.value.where == where
    assert caught.value.what.startswith(named)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("seconds", ..., "seconds: Field required"),
        ("future", 1, "future: Extra inputs are not permitted"),
        ("artifact/kind", "cake", "artifact.kind"),
        ("history", [{"loss": None}], "history.0.loss"),
    ],
)
def test_a_manifest_of_another_version_is_said_to_be_one(run, key, value, named):
    where = change(run, "student", key, value)
    with pytest.raises(UserError, match="of another version of the toolkit") as caught:
        finished_manifests(run)
    assert caught.value.where == where
    assert named in caught.value.what


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"stage": "\\ud800"}'])
def test_a_damaged_manifest_is_named(run, content):
    (run / "student" / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match="this manifest cannot be read"):
        finished_manifests(run)


def test_figures_that_an_older_version_did_not_record_are_needed_for_reports_only(run):
    change(run, "student", "metrics/sparsity", ...)
    change(run, QUANTIZE, "metrics/dev_n", ...)
    inspection(run)
    for manifest in finished_manifests(run, complete=False):
        require_recorded(manifest, run, manifest.stage, manifest.task, complete=False)
    with pytest.raises(UserError, match=r"metrics\.sparsity: Field required"):
        finished_manifests(run)


def test_a_run_without_an_exported_variant_has_nothing_to_recommend(run):
    change(run, EXPORT, "metrics/variants", {})
    with pytest.raises(UserError, match="exported no variant"):
        _exported(run, None)


def test_a_dense_model_of_fewer_layers_records_these_in_place_of_its_sparsity(run):
    stages = ("student", "tasks/films/transfer", QUANTIZE)
    for stage in stages:
        change(run, stage, "metrics/sparsity", ...)
        change(run, stage, "metrics/per_matrix", ...)
        change(run, stage, "metrics/kept_layers", [1, 3, 5])
        change(run, stage, "metrics/layers_before", 6)
    for variant, accuracy in (("sparse-int8", 0.83), ("dense-int8", 0.5)):  # the one to deploy is described
        change(run, BENCHMARK, f"metrics/variants/{variant}/accuracy/accuracy", accuracy)
    manifests = finished_manifests(run)
    build([manifests], run / "report")
    page = (run / "report/report.md").read_text()
    assert "sparse-int8 (dense, 3 of 6 layers) reaches" in page
    assert not any(words in page for words in ("weights are zero", "was pruned", "pruning steps"))
    inspection(run)
    for stage in stages:
        change(run, stage, "metrics/layers_before", ...)
        with pytest.raises(UserError, match=r"metrics\.layers_before: Field required"):
            finished_manifests(run)
        change(run, stage, "metrics/layers_before", 6)
