"""Checks before a run: matrices of each pruner, reachable sparsity, sequence lengths, settings that cannot work."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from toolkit.core.errors import UserError
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.models.architectures import usable_positions
from toolkit.models.depth import keep_layers
from toolkit.models.load import load_masked_lm, load_tokenizer, prunable_matrices, save_checkpoint
from toolkit.pipeline.preflight import check_recipe
from toolkit.pipeline.run import Run
from toolkit.recipe import Recipe
from toolkit.sparsity.mask import SparsityMask


@pytest.fixture
def recipe(tiny_bert, tiny_task_files):
    """A recipe that prunes the tiny model on its task."""

    def make(
        compression: dict, *, epoch=4, backend="inc", rewinding=False, warmup_ratio=0.01, **changes: Any
    ) -> Recipe:
        task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev)}
        pruning = {
            "backend": backend,
            "train": {"epoch": epoch, "warmup_ratio": warmup_ratio},
            "learning_rate_rewinding": rewinding,
            "approach": {
                "weight_compression": {"start_epoch": 0, "end_epoch": 2, "update_frequency": 0.5, "pruners": [{}]}
                | compression
            },
        }
        values = {
            "name": "r",
            "model": {"source": str(tiny_bert)},
            "tasks": {"toy": task},
            "transfer": {"pruning": pruning},
        }
        return Recipe.model_validate(values | changes)

    return make


def lines(found: list[tuple[str, str]]) -> str:
    return "\n".join(f"{what}: {text}" for what, text in found)


def test_each_pruner_is_shown_with_its_matrices_and_the_sparsity_they_reach(recipe):
    pruners = [
        {"names": ["attention"], "target_sparsity": 0.9},
        {"names": ["layer.0"], "exclude_names": ["attention"], "pattern": "2:4", "target_sparsity": 0.5},
    ]
    shown = lines(check_recipe(recipe({"pruners": pruners})))
    assert "12 encoder matrices, 16,384 weights" in shown
    first, second = shown.split("transfer pruner 2: ")
    assert "magnitude, 0% -> 90% in epochs 0..2, every 0.5, cubic, tile_pattern_1x1" in first
    assert "bert.encoder.layer.[0,1].attention.self.query.weight 32x32: 89.9%" in first
    assert "intermediate" not in first
    assert "bert.encoder.layer.[0].intermediate.dense.weight 64x32: 50.0%" in second


def test_a_ready_teacher_of_another_shape_is_refused(recipe, tiny_bert, tmp_path):
    model = load_masked_lm(tiny_bert)
    model.bert.encoder.layer = model.bert.encoder.layer[:1]
    model.config.num_hidden_layers = 1
    save_checkpoint(model, load_tokenizer(tiny_bert), tmp_path)
    with pytest.raises(UserError, match=r"num_hidden_layers is 1, not 2 as in model\.source") as caught:
        check_recipe(recipe({}, ready={"teacher": str(tmp_path)}))
    assert "ready.teacher" in str(caught.value)
    assert f"model: {{source: {tmp_path}}}" in str(caught.value)


def test_a_ready_sparse_model_is_shown_with_the_zeros_of_each_matrix(recipe, tiny_bert, tmp_path):
    model = load_masked_lm(tiny_bert)
    weights = {name: module.weight for name, module in prunable_matrices(model).items()}
    torch.manual_seed(0)
    SparsityMask({name: torch.rand_like(weight) >= 0.75 for name, weight in weights.items()}).apply_(weights)
    save_checkpoint(model, load_tokenizer(tiny_bert), tmp_path)
    locked = {"pruning": {"train": {"epoch": 1}}}
    shown = lines(check_recipe(recipe({}, transfer=locked, ready={"student": str(tmp_path)})))
    (share,) = re.findall(r"locked: (\d+\.\d+)% of 16,384 encoder weights are zero", shown)
    assert float(share) == pytest.approx(75, abs=1)
    assert len(re.findall(r"layer\.\[\d(?:,\d)?\]\.\S+ \d+x\d+: 7\d\.\d%", shown)) >= 6


@pytest.mark.parametrize(
    ("compression", "options", "words"),
    [
        ({}, {"epoch": 2}, "the last pruning step is at the start of epoch 2, but the training has only 2 epochs"),
        ({"end_epoch": 0}, {}, "the ramp has no steps"),
        ({"pattern": "tile_pattern_3x1"}, {}, "does not divide bert.encoder.layer.0"),
        ({"pattern": "tile_pattern_4x1"}, {"backend": "nncf"}, "nncf does not support pattern 'tile_pattern_4x1'"),
        ({"pruners": [{"names": ["nothing"]}]}, {}, "'nothing' matches no prunable matrix"),
    ],
)
def test_what_cannot_come_true_is_told(recipe, compression, options, words):
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        check_recipe(recipe(compression, **options))
    assert caught.value.where
    assert caught.value.instead


def test_rewinding_far_above_the_peak_is_told_unless_it_is_switched_off(recipe):
    ramp = {"end_epoch": 3, "update_frequency": 1}  # one epoch of four is outside of the ramp
    check_recipe(recipe(ramp, rewinding=True))
    with pytest.raises(UserError, match="more than twice its peak: warm-up takes 60% of the steps outside") as caught:
        check_recipe(recipe(ramp, rewinding=True, warmup_ratio=0.15))
    assert "a smaller warmup_ratio" in (caught.value.instead or "")
    check_recipe(recipe(ramp, rewinding=False, warmup_ratio=0.15))


def test_a_dense_model_has_no_pattern_to_lock(recipe, tiny_bert):
    with pytest.raises(UserError, match="there is no pattern to lock"):
        check_recipe(recipe({}, transfer={"pruning": {"train": {"epoch": 1}}}, ready={"student": str(tiny_bert)}))


@pytest.fixture
def long(recipe, tiny_text):
    """A recipe with all stages whose sections have a length; `lengths` are the changed ones. 128 positions."""

    def make(corpus=128, task=128, timed=128, **changes) -> Recipe:
        values = recipe({}).model_dump(mode="json", exclude_unset=True)
        values["tasks"]["toy"]["max_seq_length"] = task
        values |= {"corpus": {"files": [str(tiny_text)], "max_seq_length": corpus}, "teacher": {"train": {"steps": 1}}}
        values |= {"task_teacher": {"train": {"steps": 1}}, "export": {}}
        values |= {"benchmark": {"evaluation": {"performance": {"sequence_length": timed}}}}
        return Recipe.model_validate(values | changes)

    return make


LENGTHS = [
    ("corpus", "max_seq_length", "corpus"),
    ("task", "max_seq_length", "tasks.toy"),
    ("timed", "sequence_length", "benchmark.evaluation.performance"),
]


@pytest.mark.parametrize(("which", "key", "where"), LENGTHS)
def test_length_beyond_the_models_positions_is_refused_at_its_section(long, which, key, where):
    check_recipe(long())
    with pytest.raises(UserError, match=f"{key} 129 is more than the model's 128 positions") as error:
        check_recipe(long(**{which: 129}))
    assert (error.value.where, error.value.instead) == (where, f"{key}: 128")


@pytest.mark.parametrize(("which", "key", "where"), LENGTHS)
def test_length_beyond_the_models_positions_ends_a_run_before_its_first_stage(long, tmp_path, which, key, where):
    with pytest.raises(UserError, match="128 positions") as error:
        Run(long(**{which: 129}), tmp_path, lambda step: pytest.fail(f"{step.label} has begun"))()
    assert error.value.where == where


def test_lengths_are_held_against_what_is_known_of_a_model_on_the_hub(long):
    source = {"source": "google-bert/bert-base-uncased"}
    check_recipe(long(corpus=512, task=512, timed=512, model=source))
    with pytest.raises(UserError, match="512 positions"):
        check_recipe(long(corpus=513, model=source))
    check_recipe(long(corpus=4096, task=4096, timed=4096, model={"source": "nobody/knows-this-model"}))


def test_length_of_a_task_is_held_against_its_ready_model_too(long, tmp_path, tiny_bert):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64}')
    for file in tiny_bert.glob("*.safetensors"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    recipe = long(task=65, timed=64)
    task = recipe.tasks["toy"].model_copy(update={"ready": {"task_teacher": str(tmp_path)}})
    with pytest.raises(UserError, match="max_seq_length 65 is more than the model's 64 positions"):
        check_recipe(recipe.model_copy(update={"tasks": {"toy": task}}))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "t5"}, None),
        ({"max_position_embeddings": -1}, None),
    ],
)
def test_positions_are_those_that_tokens_can_have(config, expected):
    assert usable_positions(config) == expected


def test_config_that_is_no_json_is_refused_by_its_name(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not a JSON file") as error:
        _ = ResolvedInputs().model(str(tmp_path)).config
    assert error.value.where == str(tmp_path / "config.json")


@pytest.fixture
def one_shot(tiny_bert, tiny_text):
    """A recipe of a student that is only reconstructed."""

    def make(sequences=64, **compression: Any) -> Recipe:
        pruning = {"approach": {"weight_compression": compression}}
        pruning["reconstruction"] = {"calibration": {"sequences": sequences}}
        values = {"name": "r", "model": {"source": str(tiny_bert)}, "student": {"pruning": pruning}}
        return Recipe.model_validate(values | {"corpus": {"files": [str(tiny_text)], "max_seq_length": 24}})

    return make


def test_check_shows_what_reconstruction_will_reach(one_shot):
    shown = lines(check_recipe(one_shot(target_sparsity=0.5, pattern="2:4")))
    assert (
        "student pruner: magnitude, 0% -> 50% in steps 0..0, every 1, cubic, 2:4, local, by reconstruction (admm)"
        in shown
    )
    assert "bert.encoder.layer.[0,1].output.dense.weight 32x64: 50.0%" in shown


def test_check_counts_the_tokens_that_calibrate(one_shot):
    with pytest.raises(UserError, match="at most 48 tokens calibrate, but the widest matrix has 64 columns") as raised:
        check_recipe(one_shot(sequences=2))
    assert raised.value.instead.startswith("at least 3 sequences")
    check_recipe(one_shot(sequences=3))


def test_check_counts_the_tokens_of_the_longest_source(one_shot, tiny_text):
    mixed = {"sources": [{"files": [str(tiny_text)], "max_seq_length": length} for length in (24, 40)]}
    recipe = one_shot(sequences=2)
    check_recipe(Recipe.model_validate(recipe.model_dump(exclude={"corpus"}) | {"corpus": mixed}), read_rows=False)


@pytest.mark.parametrize("kind", ["albert", "deberta-v2"])
@pytest.mark.parametrize("where", ["student.pruning.reconstruction", "transfer.reconstruction"])
def test_check_refuses_to_reconstruct_matrices_that_run_several_times(where, kind, one_shot, tiny_bert, tmp_path):
    folder = tmp_path / kind
    torch.manual_seed(0)
    sizes = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    sizes |= {"num_hidden_layers": 2} | ({"embedding_size": 32} if kind == "albert" else {})
    AutoModelForMaskedLM.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(folder)
    load_tokenizer(tiny_bert).save_pretrained(folder)
    values = one_shot(start_step=0).model_dump() | {"model": {"source": str(folder)}}
    if where.startswith("transfer"):
        file = str(tmp_path / "rows.tsv")
        Path(file).write_text("sentence\tlabel\n" + "".join(f"a film {n}\t{n % 2}\n" for n in range(4)))
        values |= {
            "student": None,
            "corpus": None,
            "ready": {"student": str(folder)},
            "tasks": {"t": {"train": file, "dev": file, "max_seq_length": 16}},
            "transfer": {"reconstruction": {}, "distillation": {"train": {"steps": 1}}},
            "task_teacher": {"train": {"steps": 1}},
        }
    with pytest.raises(UserError, match=f"a model of type {kind} runs a matrix several times") as raised:
        check_recipe(Recipe.model_validate(values))
    assert raised.value.where == where
    assert "modernbert" in raised.value.instead


def test_check_compares_a_ready_student_with_the_teacher_of_its_transfer(tiny_bert, tmp_path):
    shallow = load_masked_lm(tiny_bert)
    keep_layers(shallow, [0])
    save_checkpoint(shallow, load_tokenizer(tiny_bert), tmp_path / "shallow")
    file = tmp_path / "rows.tsv"
    file.write_text("sentence\tlabel\n" + "".join(f"a film {n}\t{n % 2}\n" for n in range(4)))
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "model": {"source": str(tiny_bert)},
            "ready": {"student": str(tmp_path / "shallow")},
            "tasks": {"t": {"train": str(file), "dev": str(file), "max_seq_length": 16}},
            "task_teacher": {"train": {"steps": 1}},
            "transfer": {"reconstruction": {}, "distillation": {"train": {"steps": 1}}},
        }
    )
    with pytest.raises(UserError, match="have different matrices") as raised:
        check_recipe(recipe)
    assert raised.value.where == "transfer.reconstruction"


def test_check_refuses_a_pattern_that_does_not_divide_a_reconstructed_matrix(one_shot):
    with pytest.raises(UserError, match="pattern 'tile_pattern_5x1' does not divide"):
        check_recipe(one_shot(pattern="tile_pattern_5x1"))
