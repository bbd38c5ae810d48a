"""Damaged checkpoints: `check`, `inspect` and transformers' loading refuse them with a UserError, or take them."""

import json
import shutil
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.damage import damaged, damaged_bytes, refused_or
from tests.fuzz.folders import CONFIG
from toolkit.cli.inspect import inspection
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.models.load import load_task_model, load_tokenizer
from toolkit.pipeline.graph import plan
from toolkit.pipeline.preflight import check_recipe
from toolkit.recipe import Recipe

INDEX = {"metadata": {}, "weight_map": {"bert.pooler.dense.weight": "model-1.safetensors"}}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def use(folder: Path, changes: dict[str, bytes | None]) -> None:
    """Changes or removes files of a copy of the checkpoint, and does with it what the commands do."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "model", copy)
    for name, content in changes.items():
        (copy / name).unlink(missing_ok=True)
        if content is not None:
            (copy / name).write_bytes(content)
    refused_or(lambda: checked(folder))
    refused_or(lambda: inspection(copy))
    refused_or(lambda: load_tokenizer(copy))
    refused_or(lambda: load_task_model(copy, "classification", ("bad", "good"), fitted=True))


def checked(folder: Path) -> None:
    model, train = str(folder / "copy"), {"train": {"steps": 4}}
    task = {"train": str(folder / "train.tsv"), "dev": str(folder / "dev.tsv"), "ready": {"task_teacher": model}}
    ramp = {"backend": "magnitude", "approach": {"weight_compression": {"end_step": 2}}}
    layers = {"layer_mappings": [["bert.encoder.layer.0", "bert.encoder.layer.0"]]}
    criterion = {"IntermediateLayersKnowledgeDistillationLoss": layers}
    values = {
        "name": "fuzzed",
        "model": {"source": model},
        "tasks": {"toy": task | {"max_seq_length": 16}},
        "corpus": {"files": [str(folder / "text.txt")], "max_seq_length": 16},
        "student": {"pruning": ramp, "distillation": train},
        "transfer": {"distillation": {"train": {"steps": 4, "criterion": criterion}}},
    }
    recipe, inputs = Recipe.model_validate(values), ResolvedInputs()
    check_recipe(recipe, inputs)
    plan(recipe, folder / "run", inputs)


def test_the_checkpoint_that_is_damaged_is_valid(folder):
    shutil.copytree(folder / "model", folder / "copy", dirs_exist_ok=True)
    assert load_tokenizer(folder / "copy")
    assert load_task_model(folder / "copy", "classification", ("bad", "good"), fitted=True)


@given(config=damaged(CONFIG))
def test_a_damaged_config_is_refused_or_used(folder, config):
    use(folder, {"config.json": json.dumps(config).encode("utf-8", "surrogatepass")})


@given(data=st.data())
def test_damaged_weights_are_refused_or_used(folder, data):
    whole = (folder / "model" / "model.safetensors").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    changed = data.draw(damaged(header))
    encoded = json.dumps(changed).encode("utf-8", "surrogatepass")
    content = len(encoded).to_bytes(8, "little") + encoded + whole[8 + size :]
    use(folder, {"model.safetensors": data.draw(st.one_of(st.just(content), damaged_bytes(whole)))})


@given(data=st.data())
def test_a_damaged_tokenizer_is_refused_or_used(folder, data):
    name = data.draw(st.sampled_from(TOKENIZER_FILES))
    values = json.loads((folder / "model" / name).read_text())
    changed = json.dumps(data.draw(damaged(values))).encode("utf-8", "surrogatepass")
    content = data.draw(st.one_of(st.just(changed), damaged_bytes((folder / "model" / name).read_bytes())))
    use(folder, {name: content})


@given(
    index=damaged({"metadata": {}, "weight_map": {"bert.pooler.dense.weight": "model-1.safetensors"}}),
    both=st.booleans(),
)
def test_a_damaged_index_is_refused_or_used(folder, index, both):
    weights = (folder / "model" / "model.safetensors").read_bytes()
    changes = {"model.safetensors.index.json": json.dumps(index).encode("utf-8", "surrogatepass")}
    use(folder, changes if both else changes | {"model.safetensors": None, "model-1.safetensors": weights})
