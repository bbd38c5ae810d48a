"""Nothing in a file of INC is lost: every key of its schema changes the recipe, is told, or is refused."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from toolkit.core.errors import UserError
from toolkit.core.yaml_document import dump_yaml, parse_yaml
from toolkit.recipe.inc import IncFlags, read_inc
from toolkit.recipe.inc.schema import IncFile
from toolkit.recipe.json_schema import Schema
from toolkit.recipe.messages import dotted

TAUGHT = IncFlags(model="m", teacher="t", task="sst2", train_file="train.tsv", validation_file="dev.tsv")
BASE: dict[str, Any] = {
    "model": {"name": "x", "framework": "pytorch"},
    "pruning": {"approach": {"weight_compression": {"pruners": [{"exclude_names": ["query"]}]}}},
    "quantization": {"approach": "post_training_static_quant"},
    "distillation": {"train": {"criterion": {"KnowledgeDistillationLoss": {"temperature": 1.5}}}},
}
SCHEMA = Schema(IncFile)


def leaves(node: dict, path: tuple = ()) -> Iterator[tuple[tuple, dict]]:
    """Every key of INC's schema that holds a value."""
    node = SCHEMA.resolved(node)
    for key, child in node.get("properties", {}).items():
        inner = SCHEMA.resolved(child)
        if inner.get("properties"):
            yield from leaves(inner, (*path, key))
        elif key == "pruners":
            yield from leaves(inner["items"], (*path, key, 0))
        elif inner.get("type") == "object" and isinstance(inner.get("additionalProperties"), dict):
            yield from leaves(inner["additionalProperties"], (*path, key, "Linear"))
        else:
            yield (*path, key), child | inner


def other_value(path: tuple, node: dict) -> Any:
    """A legal value that is not the default."""
    default = node.get("default")
    if path[-1] == "layer_mappings":
        return [["a", "b"]]
    if "enum" in node:
        return next(value for value in node["enum"] if value not in (default, "pytorch", "basic_magnitude"))
    if node.get("type") == "array":
        items = SCHEMA.resolved(node.get("items", {"type": "string"}))
        taken = default[0] if default else None
        return [other_value(path, items | {"default": taken})] * node.get("minItems", 1)
    if node.get("type") == "boolean":
        return not default
    if node.get("type") in ("integer", "number"):
        return next(
            v
            for v in (1, 0.5, 2, 7)
            if v != default and v <= node.get("maximum", 9) and v < node.get("exclusiveMaximum", 9)
        )
    return {"anything": 1} if node.get("type") == "object" else "text"


def with_value(path: tuple, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(BASE)
    if "weight_compression_pytorch" in path:
        approach = data["pruning"]["approach"]
        approach["weight_compression_pytorch"] = approach.pop("weight_compression")
    section: Any = data
    for key in path[:-1]:
        section = section[key] if isinstance(section, list) else section.setdefault(key, {})
    section[path[-1]] = value
    return data


LEAVES = dict(leaves(SCHEMA.root))
# Values other than INC's default that ask for what is done in any case.
DONE_ANYWAY = {("version",), ("model", "framework"), ("quantization", "model_wise", "activation", "algorithm")}


def test_the_walk_finds_incs_schema():
    assert len(LEAVES) > 150
    assert ("tuning", "exit_policy", "max_trials") in LEAVES
    assert ("pruning", "approach", "weight_compression", "pruners", 0, "names") in LEAVES


@pytest.mark.parametrize("path", LEAVES, ids=lambda p: ".".join(map(str, p)))
def test_every_key_of_incs_changes_the_recipe_or_is_told_or_refused(path, tmp_path):
    """The heart of the promise: a key that is written and has no effect is a line or an error, never silence."""
    value = other_value(path, LEAVES[path])
    base = with_value(("version",), 1.0)
    if "weight_compression_pytorch" in path:
        base["pruning"]["approach"]["weight_compression_pytorch"] = base["pruning"]["approach"].pop(
            "weight_compression"
        )
    before = read_inc([_write(tmp_path / "base.yaml", base)], TAUGHT)
    file = _write(tmp_path / "changed.yaml", with_value(path, value))
    try:
        plan = read_inc([file], TAUGHT)
    except UserError as error:
        message = str(error)
    else:
        message = ""
        told = any(str(path[-1]) in note for note in set(plan.notes) - set(before.notes))
        changed = _plain(plan.recipe) != _plain(before.recipe) or plan.run_folder != before.run_folder
        assert told or changed or path in DONE_ANYWAY, f"{dotted(path)} = {value!r} is lost"
    assert not message or any(str(key) in message for key in path[-3:]), message


def _plain(recipe: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key != "description"}


def _write(path: Path, data: dict[str, Any]) -> Path:
    path.write_text(dump_yaml(data))
    assert parse_yaml(path.read_text(), "x").data == data
    return path
