"""Published results and measurements: status of each result, and a tiny result from recipe to record."""

import json
from contextlib import suppress

import pytest
from rich.console import Console

from toolkit.cli import scoreboard as commands
from toolkit.core import machine, paths
from toolkit.core.errors import CheckFailed, CompressionFailed, UserError
from toolkit.core.yaml_document import dump_yaml
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.reporting.scoreboard.board import (
    Measurement,
    assess,
    load_measurements,
    load_scoreboard,
    needed_recipe,
    save_measurement,
)
from toolkit.reporting.scoreboard.render import scoreboard_markdown, scoreboard_table, write_scoreboard_page

ROW = "tiny-90-int8-toy"
BOARD = """
tolerance: 0.5
sources:
  card: {text: a card, url: "https://example.org/<card>", seen: second-hand}
rows:
  tiny-90-int8-toy:
    {model: Tiny, sparsity: 0.9, precision: int8, task: toy, source: card, recipe: tiny,
     claimed: {accuracy: 80.0, f1: 70.0}}
  other-85-fp32-toy:
    {model: Other, sparsity: 0.85, precision: fp32, task: toy, source: card, recipe: none, claimed: {accuracy: 90.0}}
"""


@pytest.fixture
def board(tmp_path):
    path = tmp_path / "board.yaml"
    path.write_text(BOARD)
    return load_scoreboard(path)


def measured(accuracy: float, f1: float, **values) -> Measurement:
    defaults = {
        "row": ROW,
        "start": "pre-training",
        "overrides": (),
        "note": "",
        "values": {"accuracy": accuracy, "f1": f1},
        "n": {"accuracy": 872, "f1": 872},
        "seed": 42,
        "machine": {"cpu": "some CPU"},
        "versions": {},
        "commit": "abc",
        "origins": {"model.source": "google-bert/bert-base-uncased@86b5e09"},
        "started": "2031-02-03T04:05:06+00:00",
    }
    return Measurement(**(defaults | values))


@pytest.mark.parametrize(
    ("runs", "status"),
    [
        ([], "unverified"),
        ([measured(80.0, 70.0)], "reproduced"),
        ([measured(79.5, 69.5)], "reproduced"),  # within the tolerance
        ([measured(79.49, 75.0)], "below"),  # one metric is not
        ([measured(79.0, 71.0), measured(80.2, 71.0, seed=43)], "reproduced"),  # the mean counts
        ([measured(90.0, 90.0, overrides=("transfer.epoch=1",))], "other setting"),
        ([measured(90.0, 90.0, note="reduced training data")], "other setting"),
        ([measured(80.0, 70.0, overrides=("seed=7", "threads=2"))], "reproduced"),
        ([measured(10.0, 10.0), measured(99.0, 99.0, note="reduced")], "below"),  # other settings change nothing
        ([measured(90.0, 90.0, commit="abc-dirty")], "other setting"),  # whose recipe nobody can look up
        ([measured(90.0, 90.0, stages={"student": "abc-dirty", "benchmark": "abc"})], "other setting"),
        ([measured(90.0, 90.0, commit="")], "other setting"),  # of an installed package: no commit is known
        ([measured(90.0, 90.0, differs=("20 of 872 dev rows",))], "other setting"),
        ([measured(90.0, 90.0, origins={})], "other setting"),  # an older record: nobody knows on what
        ([measured(80.0, 70.0, stages={"student": "ab", "benchmark": "abc"})], "reproduced"),
        ([measured(10.0, 10.0), measured(99.0, 99.0, start="published")], "below"),  # two experiments have no mean
        ([measured(10.0, 10.0), measured(99.0, 99.0, started="2031-02-04T00:00:00+00:00")], "reproduced"),  # same seed
    ],
)
def test_status_follows_from_the_runs_that_are_the_rows_experiment(board, runs, status):
    first, second = assess(board, runs)
    assert (first.name, first.status) == (ROW, status)
    assert second.status == "unverified"


def test_record_that_lacks_a_claimed_metric_is_no_measurement_of_the_row(board):
    without = measured(80.0, 70.0)
    del without.values["f1"]
    assert assess(board, [without])[0].status == "unverified"
    both = assess(board, [without, measured(80.0, 70.0, seed=43)])[0]
    assert (both.status, both.seeds) == ("reproduced", (43,))


def test_record_of_before_origins_were_kept_is_read_and_shown_as_another_setting(board, tmp_path):
    path = save_measurement(measured(80.0, 70.0), tmp_path)
    values = json.loads(path.read_text())
    del values["origins"], values["differs"]
    path.write_text(json.dumps(values))
    first, _ = assess(board, load_measurements(tmp_path))
    assert first.status == "other setting"
    assert "models and data of unknown origin" in scoreboard_markdown(board, [first])


def test_several_seeds_show_mean_and_spread(board):
    first, _ = assess(board, [measured(79.0, 71.0), measured(81.0, 71.0, seed=43)])
    assert (first.measured, first.seeds) == ({"accuracy": 80.0, "f1": 71.0}, (42, 43))
    assert first.spread["accuracy"] == pytest.approx(2**0.5)
    assert "80.00 ± 1.41" in scoreboard_markdown(board, [first])


def test_of_other_settings_the_last_one_is_shown_and_none_takes_the_place_of_a_reproduction(board, tmp_path):
    runs = [
        measured(90.0, 90.0),
        measured(50.0, 50.0, overrides=("transfer.epoch=1",), started="2031-02-04T00:00:00+00:00"),
        measured(60.0, 60.0, overrides=("transfer.epoch=2", "seed=43"), seed=43, started="2031-02-05T00:00:00+00:00"),
    ]
    for run in runs:
        save_measurement(run, tmp_path)
    found = load_measurements(tmp_path)
    assert len(found) == 3
    assert assess(board, found)[0].measured["f1"] == 90.0
    other = assess(board, [m for m in found if not m.as_published])[0]
    assert (other.measured["f1"], other.note) == (60.0, "pre-training; transfer.epoch=2")


def test_table_markdown_and_page_tell_claims_measurements_and_where_they_stand(board, tmp_path):
    standings = assess(board, [measured(79.0, 71.0, note="reduced <data>")])
    lines = scoreboard_markdown(board, standings).splitlines()
    assert {line.count("|") for line in lines} == {11}
    assert "accuracy 80.00, f1 70.00" in lines[2]
    assert "other setting (pre-training; reduced &lt;data>)" in lines[2]
    assert "second-hand" in lines[2]
    write_scoreboard_page(board, standings, tmp_path / "deep" / "board.html")
    page = (tmp_path / "deep" / "board.html").read_text()
    assert "reduced &lt;data&gt;" in page
    assert "unverified" in page
    assert "<script" not in page
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    console.print(scoreboard_table(standings))
    assert "other-85-fp32-toy" in console.export_text()


def test_the_shipped_rows_have_recipes_that_measure_their_claims():
    from toolkit.cli.run import shipped
    from toolkit.recipe.load import load_recipe

    board = load_scoreboard(paths.SCOREBOARD)
    assert len(board.rows) == 25 + 6 + 2 + 1 + 5 + 1 + 9 + 7
    for name, row in board.rows.items():
        sparsity = f"{round(100 * row.sparsity)}{'-' + row.blocks if row.blocks else ''}" if row.sparsity else "dense"
        assert name.startswith(f"{row.model.lower()}-{sparsity.removesuffix('-structured')}-")
        assert name.endswith(f"-{row.precision}-{row.task}")
        ours = row.source in ("paper-fp32", "paper-int8", "cards-squad")
        assert bool(row.recipe or row.published) == ours  # nobody else's recipe is at hand
        for recipe in filter(None, (row.recipe, row.published)):
            task = load_recipe(shipped(recipe)).tasks[row.task]
            splits = ["", *(f" ({split})" for split in task.more_dev)]
            assert row.claimed.keys() <= {f"{metric}{split}" for metric in task.metrics for split in splits}


def test_shipped_rows_tell_dense_models_from_sparse_ones():
    board = load_scoreboard(paths.SCOREBOARD)
    assert board.rows["bert-base-dense-fp32-mnli"].variant == "dense-fp32"
    assert board.rows["bert-base-dense-vuiseng9-int8-squad"].variant == "dense-int8"
    assert board.rows["bert-large-80-block-int8-squad"].variant == "sparse-int8"
    assert board.rows["bert-large-80-block-int8-squad"].claimed == {"f1": 90.41}
    lines = scoreboard_markdown(board, assess(board, [])).splitlines()
    assert any(line.startswith("| BERT-Base | dense | int8 | squad") for line in lines)
    assert any(line.startswith("| BERT-Large | 80 %, block | int8 | squad") for line in lines)


@pytest.mark.parametrize(
    ("row", "stages", "variant"),
    [
        ({"precision": "int8"}, ["teacher", "student", "task_teacher", "transfer", "quantize"], "sparse-int8"),
        ({"precision": "fp32"}, ["teacher", "student", "task_teacher", "transfer"], "sparse-fp32"),
        ({"precision": "fp32", "sparsity": 0.0}, ["teacher", "task_teacher"], "dense-fp32"),
    ],
)
def test_row_needs_its_own_variant_and_the_stages_before_it(row, stages, variant, tmp_path):
    from toolkit.cli.run import shipped
    from toolkit.pipeline.graph import plan
    from toolkit.recipe.load import load_recipe

    chosen = load_scoreboard(paths.SCOREBOARD).rows["bert-base-90-fp32-squad"].model_copy(update=row)
    recipe = load_recipe(shipped("bert_base/90"))
    recipe = recipe.model_copy(update={"tasks": {"squad": recipe.tasks["squad"]}})  # it has a `quantize` of its own
    steps = plan(needed_recipe(recipe, chosen), tmp_path, ResolvedInputs())
    assert [step.stage.name for step in steps] == [*stages, "export", "benchmark"]
    assert steps[-2].sections["export"].variants == (variant,)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("source: card, recipe: tiny", "source: cart, recipe: tiny", "unknown source 'cart'"),
        ("precision: int8", "precision: int4", "rows.tiny-90-int8-toy.precision"),
        ("tolerance: 0.5", "tolerance: much", "tolerance"),
    ],
)
def test_mistake_in_the_rows_is_told_with_its_line(tmp_path, old, new, message):
    path = tmp_path / "board.yaml"
    path.write_text(BOARD.replace(old, new))
    with pytest.raises(UserError) as error:
        load_scoreboard(path)
    assert message in error.value.what
    assert "board.yaml:" in error.value.where


def test_missing_scoreboard_unknown_row_and_damaged_record_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="no scoreboard here"):
        load_scoreboard(tmp_path / "none.yaml")
    path = tmp_path / "board.yaml"
    path.write_text(BOARD)
    with pytest.raises(UserError, match="no row 'tiny-90-int8'") as error:
        commands.reproduce("tiny-90-int8", None, False, tmp_path, path)
    assert error.value.instead == ROW
    with pytest.raises(UserError, match="no row 'x'") as error:
        commands.reproduce("x", None, False, tmp_path, path)
    assert "pruneofa scoreboard" in error.value.instead
    with pytest.raises(UserError, match="no published sparse model"):
        commands.reproduce(ROW, None, True, tmp_path, path)
    with pytest.raises(UserError, match="no recipe with pre-training") as error:
        commands.reproduce("bert-base-50-1of2-fp32-sst2", None, False, tmp_path)
    assert error.value.instead == "a row that has a recipe"
    (tmp_path / "measured" / ROW).mkdir(parents=True)
    for damaged in (b"{}", b"{", b"\xff\xfe{"):
        (tmp_path / "measured" / ROW / "a.json").write_bytes(damaged)
        with pytest.raises(UserError, match="not a record"):
            commands.scoreboard(None, None, path)


def test_another_seed_leaves_the_pre_training_of_the_first_alone(tmp_path, monkeypatch):
    folders = []

    def execute(recipe, folder):
        folders.append(folder.name)
        raise CheckFailed("enough")

    monkeypatch.setattr("toolkit.cli.run.execute", execute)
    for overrides in (None, ["seed=43"], ["seed=43", "name=other"]):
        with pytest.raises(CheckFailed):
            commands.reproduce("bert-base-90-fp32-sst2", overrides, False, tmp_path)
    assert folders == ["bert-base-90", "bert-base-90-seed43", "other-seed43"]


@pytest.fixture
def tiny_row(tiny_bert, tiny_task_files, tiny_text, tmp_path, monkeypatch):
    """Writes the recipe of ROW, and the scoreboard beside it; returns the scoreboard's path."""
    steps = {"steps": 3, "batch_size": 8}
    task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev), "metrics": ["accuracy", "f1"]}
    pruner = {
        "target_sparsity": 0.9,
        "end_step": 2,
        "update_frequency_on_step": 1,
        "pruners": [{"prune_type": "magnitude"}],
    }
    timing = {"warmup": 0, "iteration": 1, "seconds": 1, "batch_sizes": [1], "sequence_length": 16}
    recipe = {
        "name": "tiny",
        "model": {"source": str(tiny_bert)},
        "tasks": {"unused": task | {"max_seq_length": 16}, "toy": task | {"max_seq_length": 16}},
        "corpus": {"files": [str(tiny_text)], "max_seq_length": 32, "limit": 40},
        "student": {
            "pruning": {"approach": {"weight_compression": pruner}},
            "distillation": {"train": steps},
        },
        "task_teacher": {"train": steps},
        "transfer": {"distillation": {"train": steps}},
        "quantize": {
            "distillation": {"train": steps},
            "quantization": {"calibration": {"sampling_size": 8}},
            "tuning": {"accuracy_criterion": {"absolute": 0.9}},
        },
        "export": {"metric_tolerance": 0.5, "tolerance": 0.2},
        "benchmark": {"evaluation": {"performance": timing}},
    }
    (tmp_path / "tiny.yaml").write_text(dump_yaml(recipe))
    path = tmp_path / "board.yaml"
    path.write_text(BOARD.replace("accuracy: 80.0, f1: 70.0", "accuracy: 1.0, f1: 0.0"))
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setattr(machine, "commit", lambda: "0123456789ab")  # not that of a working copy with changes
    return path


def reproduce(overrides, folder, path):
    """Runs ROW; after three steps a model may be at chance, which the last line says after all is recorded."""
    with suppress(CompressionFailed):
        commands.reproduce(ROW, overrides, False, folder / "runs", path)


def test_a_row_is_run_for_its_task_alone_and_recorded(tiny_row, tmp_path, capsys):
    path = tiny_row
    reproduce(None, tmp_path, path)
    assert not (tmp_path / "runs/tiny/tasks/unused").exists()
    (file,) = (tmp_path / "measured" / ROW).glob("*.json")
    values = json.loads(file.read_text())
    benchmark = json.loads((tmp_path / "runs/tiny/tasks/toy/benchmark/manifest.json").read_text())
    scores = benchmark["metrics"]["variants"]["sparse-int8"]["accuracy"]
    assert values["values"] == {k: pytest.approx(100 * v, abs=1e-4) for k, v in scores.items()}
    assert (values["n"], values["seed"], values["start"]) == ({"accuracy": 120, "f1": 120}, 42, "pre-training")
    assert values["machine"]
    assert (values["origins"].keys(), values["differs"]) == (
        {"model.source", "corpus.files.0", "tasks.toy.train", "tasks.toy.dev"},
        [],
    )
    assert "reproduced" in capsys.readouterr().out
    path.write_text(BOARD.replace("accuracy: 80.0", "accuracy: 100.0"))
    reproduce(None, tmp_path, path)  # nothing runs again: the claim is new
    assert "below" in capsys.readouterr().out
    reproduce(["benchmark.seconds=2"], tmp_path, path)
    assert len(list((tmp_path / "measured" / ROW).glob("*.json"))) == 2
    assert "below" in capsys.readouterr().out  # what the row's own experiment gave


def test_a_row_in_fp32_is_recorded_whatever_8_bits_would_do(tiny_row, tmp_path, monkeypatch):
    from toolkit.quantization import nncf

    monkeypatch.setattr(nncf, "quantized", lambda *_: pytest.fail("an FP32 row was quantized"))
    monkeypatch.setattr(nncf, "post_training", lambda *_: pytest.fail("an FP32 row was quantized"))
    tiny_row.write_text(tiny_row.read_text().replace("precision: int8", "precision: fp32"))
    reproduce(None, tmp_path, tiny_row)
    (file,) = (tmp_path / "measured" / ROW).glob("*.json")
    assert json.loads(file.read_text())["n"] == {"accuracy": 120, "f1": 120}
    folder = tmp_path / "runs/tiny/tasks/toy"
    assert not (folder / "quantize").exists()
    assert [p.name for p in (folder / "export").iterdir() if p.is_dir()] == ["sparse-fp32"]


def test_a_run_that_has_all_variants_is_recorded_as_it_is(tiny_row, tmp_path, monkeypatch):
    from contextlib import nullcontext

    from toolkit.core.artifacts import NullProgress
    from toolkit.pipeline.run import Run
    from toolkit.recipe.load import load_recipe

    tiny_row.write_text(tiny_row.read_text().replace("precision: int8", "precision: fp32"))
    recipe = load_recipe(tmp_path / "tiny.yaml")
    variants = {"variants": ("sparse-fp32", "sparse-int8")}
    (tmp_path / "tiny.yaml").write_text(
        dump_yaml(
            recipe.model_copy(
                update={
                    "tasks": {"toy": recipe.tasks["toy"]},
                    "export": recipe.export.model_copy(update=variants),
                }
            ).model_dump(mode="json", exclude_none=True)
        )
    )
    recipe = load_recipe(tmp_path / "tiny.yaml")
    done = Run(recipe, tmp_path / "runs/tiny", lambda step: nullcontext(NullProgress()))()
    monkeypatch.setattr(
        "toolkit.cli.run.execute", lambda found, folder: done if found == recipe else pytest.fail("changed")
    )
    reproduce(None, tmp_path, tiny_row)
    assert len(list((tmp_path / "measured" / ROW).glob("*.json"))) == 1
