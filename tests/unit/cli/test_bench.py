"""Which variant `bench --recommend` names: the fastest that keeps the accuracy, ties and better ones said."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from toolkit.cli import bench
from toolkit.core import machine
from toolkit.core.errors import UserError
from toolkit.measure.latency import LatencyStats, Round
from toolkit.pipeline import graph
from toolkit.recipe import Performance

SECTION = Performance(batch_sizes=(1,), sequence_length=64, iteration=3)
# Name -> accuracy on dev, milliseconds of three rounds.
MEASURED = {
    "dense-fp32": (0.90, (20.0, 20.5, 21.0)),
    "dense-int8": (0.897, (22.0, 22.5, 23.0)),
    "sparse-fp32": (0.893, (20.0, 20.4, 21.0)),
    "sparse-int8": (0.88, (21.0, 21.5, 22.0)),
    "sparse-engine-int8": (0.892, (5.0, 5.1, 5.3)),
}


def shown(tmp_path, monkeypatch, measured, within, isa=(), task=None):
    """What is printed for a run with these variants; times are taken as given, nothing is run."""
    exported = {n: {"ir": {"accuracy": a, "f1": 0.0}, "dev_n": 1000} for n, (a, _) in measured.items() if "," not in n}
    for name in exported:
        (tmp_path / "tasks/toy/export" / name).mkdir(parents=True, exist_ok=True)
    manifest = SimpleNamespace(stage="export", task="toy", config={}, metrics={"variants": exported})
    monkeypatch.setattr(graph, "finished_manifests", lambda run: [manifest])
    monkeypatch.setattr(machine, "describe", lambda: {"isa": list(isa)})

    def timed(folders, section, texts, scratch, properties):
        return [
            LatencyStats(
                n,
                1,
                64,
                1,
                1,
                "",
                [Round(t, t, t, t, 1000 / t, 9) for t in measured.get(n, measured[n.split(",")[0]])[1]],
            )
            for n in folders
        ]

    monkeypatch.setattr(bench, "_timed", timed)
    console = Console(record=True, width=300, file=None, quiet=False)
    with console.capture() as captured:
        console.print(bench.recommendation(tmp_path, SECTION, None, within, task).shown)
    return captured.get()


def test_the_fastest_variant_that_keeps_the_accuracy_is_named(tmp_path, monkeypatch):
    text = shown(tmp_path, monkeypatch, MEASURED, 0.01)
    assert "required accuracy is at least 0.8910, 1.00% below dense-fp32 on 1,000 dev examples" in text
    assert "batch 1, 64 tokens: deploy sparse-engine-int8 (5.10 ms)." in text


def test_a_faster_one_that_loses_too_much_is_mentioned_and_ties_are_said(tmp_path, monkeypatch):
    text = shown(tmp_path, monkeypatch, MEASURED, 0.008)
    assert "deploy sparse-fp32 (20.40 ms). Within measurement noise: dense-fp32." in text
    assert "sparse-engine-int8 is faster (5.10 ms) but not accurate enough." in text


def test_when_nothing_keeps_the_accuracy_the_closest_is_named(tmp_path, monkeypatch):
    sparse = {n: v for n, v in MEASURED.items() if n.startswith("sparse")}
    text = shown(tmp_path, monkeypatch, sparse, -0.5)
    assert "no variant is accurate enough. Closest: sparse-fp32 (0.8930)." in text


def test_where_dense_int8_is_faster_than_the_kernel_that_is_said(tmp_path, monkeypatch):
    quick = MEASURED | {"dense-int8": (0.9, (2.0, 2.1, 2.2))}
    text = shown(tmp_path, monkeypatch, quick, 0.01)
    assert "deploy dense-int8 (2.10 ms)." in text
    assert "Dense INT8 MatMuls are faster than the sparse kernels on this CPU (sparse-engine-int8: 5.10 ms)." in text


def test_with_amx_the_plugins_own_sparse_weights_are_tried_too(tmp_path, monkeypatch):
    assert "sparse-int8, AMX decompression" in shown(tmp_path, monkeypatch, MEASURED, 0.01, isa=("amx_int8",))
    assert "AMX" not in shown(tmp_path, monkeypatch, MEASURED, 0.01)


def test_where_amx_with_sparse_weights_wins_the_sentence_on_8_bit_products_is_not_lost(tmp_path, monkeypatch):
    quick = MEASURED | {"sparse-int8": (0.9, (4.0, 4.1, 4.2)), "sparse-int8, AMX decompression": (0.9, (2.0, 2.1, 2.2))}
    text = shown(tmp_path, monkeypatch, quick, 0.01, isa=("amx_int8",))
    assert "deploy sparse-int8, AMX decompression, CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE=0 (2.10 ms)." in text
    assert "Dense INT8 MatMuls are faster than the sparse kernels on this CPU (sparse-engine-int8: 5.10 ms)." in text


def test_without_a_limit_the_criteria_of_the_recipe_decide_as_in_the_report(tmp_path, monkeypatch):
    text = shown(tmp_path, monkeypatch, MEASURED | {"sparse-engine-int8": (0.874, (5.0, 5.1, 5.3))}, None)
    assert (
        "dense-fp32 has 0.9000: 0.9000 for dense-fp32; 0.8910 for dense-int8; 0.8820 for sparse-fp32; 0.8732 for"
        in text
    )
    assert "deploy sparse-engine-int8 (5.10 ms)." in text


def test_a_failed_compression_is_said_before_the_variant_to_deploy(tmp_path, monkeypatch):
    quick = MEASURED | {"dense-int8": (0.9, (2.0, 2.1, 2.2))}
    text = shown(tmp_path, monkeypatch, quick, 0.01)
    assert (
        "batch 1, 64 tokens: Compression failed: dense-int8 is faster. The fastest compressed variant that is" in text
    )


def test_an_unknown_task_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no export for task 'other'"):
        shown(tmp_path, monkeypatch, MEASURED, 0.01, task="other")


def ir_at(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "openvino_model.xml").touch()
    return folder


def test_irs_that_are_given_twice_or_share_a_name_have_a_row_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = ir_at(Path("a/sparse-int8")), ir_at(Path("b/sparse-int8"))
    odd = ir_at(Path("a_sparse-int8"))
    assert list(bench._named([one, one])) == ["sparse-int8", "sparse-int8-2"]
    assert list(bench._named([one, one / "openvino_model.xml"])) == ["sparse-int8", "sparse-int8-2"]
    assert list(bench._named([one, two])) == ["a_sparse-int8", "b_sparse-int8"]
    assert list(bench._named([one, two, odd])) == ["a_sparse-int8", "b_sparse-int8", "a_sparse-int8-2"]
    assert set(bench._named([one, two]).values()) == {one.resolve(), two.resolve()}


def test_a_checkpoint_is_no_ir(tmp_path):
    (tmp_path / "model.safetensors").touch()
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(UserError, match="a checkpoint, not an IR"):
            bench._named([path])
