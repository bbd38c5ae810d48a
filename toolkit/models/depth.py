"""Students with fewer encoder layers than their teacher: the layers that are kept, and their record in `config.json`.

Does not import torch.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.models.architectures import ARCHITECTURES, architecture_of, attention_types, layer_names
from toolkit.models.checkpoint import MIN_SPARSITY, encoder_matrices, sparsity_by_tensor
from toolkit.models.config import read_config, stated

# Keys of a student's `config.json`: the teacher's layers that were kept, numbered from 0, and how many the teacher has.
_KEPT, _BEFORE = "kept_layers", "layers_before"
_TYPES = "layer_types"  # ModernBERT's: what each layer attends to
_WHERE = "student.layers"


def require_layers_of(config: Mapping[str, Any], layers: int | Sequence[int]) -> None:
    """Checks that an encoder has the layers that a student is to keep.

    Args:
        config: The teacher's `config.json`.
        layers: How many layers are kept, or which ones, numbered from 0 and increasing.

    Raises:
        UserError: The encoder has fewer layers, or its layers cannot be removed one by one.
    """
    kind, entry = config.get("model_type"), architecture_of(config)
    if kind not in ARCHITECTURES or entry.layers == "num_hidden_groups":
        separate = [name for name, known in ARCHITECTURES.items() if known.layers != "num_hidden_groups"]
        what = f"the layers of a model of type {kind} cannot be removed one by one"
        raise UserError(what, where=_WHERE, instead=f"a model of type {', '.join(separate)}")
    total = stated(config, entry.layers)
    if isinstance(layers, int):
        if layers > total:
            raise UserError(f"{layers} layers of a model that has {total}", where=_WHERE, instead=f"at most {total}")
    elif max(layers) >= total:
        what = f"there is no layer {max(layers)}: the model's {total} layers are numbered from 0 to {total - 1}"
        raise UserError(what, where=_WHERE, instead=f"numbers below {total}")
    types = attention_types(config)
    complete = (
        layers >= len(set(types))
        if isinstance(layers, int)
        else not types or (0 in layers and {types[number] for number in layers} == set(types))
    )
    if not complete:
        what = f"a student of a model of type {kind} keeps its first layer and a layer of each kind of attention"
        raise UserError(what, where=_WHERE, instead=f"at least the layers {sorted(map(types.index, set(types)))}")


def removable_layers(config: Mapping[str, Any], kept: Sequence[int]) -> list[int]:
    """Returns those of the kept layers of an encoder without which it is still complete.

    ModernBERT keeps its first layer, which has no LayerNorm before the attention, and a layer of each kind of
    attention, without which transformers cannot load it.

    Args:
        config: The encoder's `config.json`.
        kept: Numbers of the layers that are left, from 0.
    """
    types = attention_types(config)
    if not types:
        return list(kept)
    return [number for number in kept if number and sum(types[other] == types[number] for other in kept) > 1]


def shallower(config: Mapping[str, Any], layers: int | Sequence[int]) -> dict[str, Any]:
    """Returns the `config.json` of a student that keeps these layers of its teacher.

    Args:
        config: The teacher's `config.json`.
        layers: How many layers are kept (which ones is not recorded), or which ones, numbered from 0.
    """
    key, types = architecture_of(config).layers, attention_types(config)
    numbers = range(layers) if isinstance(layers, int) else layers
    changed = dict(config) | ({_TYPES: [types[number] for number in numbers]} if types else {}) | {key: len(numbers)}
    if isinstance(layers, int):
        return {name: value for name, value in changed.items() if name != _KEPT}
    return changed | {_KEPT: list(layers), _BEFORE: config[key]}


def layer_stack(model: Any) -> tuple[Any, str]:
    """Returns the module of a model that holds the list of its encoder layers, and the name of that list in it."""
    path, _, name = architecture_of(model.config.to_dict()).layer.removesuffix(".{}").rpartition(".")
    return model.base_model.get_submodule(path), name


def keep_layers(model: Any, layers: Sequence[int]) -> None:
    """Removes all other encoder layers from a model, in place, and records this in its config.

    Args:
        model: A model with a head.
        layers: Numbers of the layers to keep, from 0, increasing.
    """
    entry = architecture_of(model.config.to_dict())
    changed = shallower(model.config.to_dict(), layers)
    parent, name = layer_stack(model)
    stack = getattr(parent, name)
    setattr(parent, name, type(stack)([stack[number] for number in layers]))
    for key in (entry.layers, _KEPT, _BEFORE, _TYPES):
        if key in changed:
            setattr(model.config, key, changed[key])


def depth_metrics(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the layers of a student for its manifest, from its `config.json`; empty if none was removed."""
    if not config.get(_KEPT) or not config.get(_BEFORE):
        return {}
    return {_KEPT: list(config[_KEPT]), _BEFORE: config[_BEFORE]}


def is_dense(folder: Path) -> bool:
    """Returns whether a checkpoint is a model with neither zeros nor fewer layers than its teacher.

    Raises:
        UserError: Its files are missing or damaged.
    """
    return not has_zeros(folder) and not depth_metrics(read_config(folder))


def is_shallow(folder: Path) -> bool:
    """Returns whether a checkpoint is a dense model that keeps some of its teacher's layers: a student without zeros.

    Raises:
        UserError: Its files are missing or damaged.
    """
    return bool(depth_metrics(read_config(folder))) and not has_zeros(folder)


def has_zeros(folder: Path) -> bool:
    """Returns whether a checkpoint's encoder matrices have as many zeros as a sparse model's.

    Raises:
        UserError: Its files are missing or damaged.
    """
    weights = {name: math.prod(shape) for name, shape in encoder_matrices(folder).items()}
    zeros = sum(share * weights[name] for name, share in sparsity_by_tensor(folder, weights).items())
    return zeros >= MIN_SPARSITY * sum(weights.values())


def default_layer_pairs(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the names of the encoder layers of student and teacher whose outputs are compared by default.

    A student's layer belongs to the teacher's layer that it was copied from, if its config records that for a model of
    as many layers as the teacher; else the student's layers are spread evenly over the teacher's. The last layer
    always belongs to the teacher's last.

    Args:
        student: The student's `config.json`.
        teacher: The teacher's `config.json`.

    Raises:
        UserError: The student has more layers than the teacher.
    """
    own, others = layer_names(student), layer_names(teacher)
    count, total = len(own), len(others)
    if count > total:
        raise UserError(
            f"the student has {count} layers, the teacher only {total}",
            where="IntermediateLayersKnowledgeDistillationLoss",
            instead="layer_mappings: [[<student layer>, <teacher layer>]]",
        )
    kept: list[int] = student.get(_KEPT) or []
    increasing = all(before < after < total for before, after in itertools.pairwise(kept))
    if len(kept) != count or student.get(_BEFORE) != total or not increasing:
        kept = [(number + 1) * total // count - 1 for number in range(count)]
    return [(name, others[number]) for name, number in zip(own, [*kept[:-1], total - 1], strict=True)]
