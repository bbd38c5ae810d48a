"""Outputs of named layers of student and teacher, for losses on hidden states."""

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from toolkit.core.errors import UserError
from toolkit.models.depth import default_layer_pairs
from toolkit.recipe import IntermediateSettings

# Student layer, output index, teacher layer, output index, distance, weight.
LayerPair = tuple[str, int, str, int, str, float]

_WHERE = "IntermediateLayersKnowledgeDistillationLoss.layer_mappings"


@contextlib.contextmanager
def recorded_outputs(model: Any, layers: set[str], whose: str) -> Iterator[dict[str, Any]]:
    """Context manager whose value maps each layer to its output in the last forward pass inside the `with`.

    Args:
        model: The model.
        layers: Names of modules.
        whose: `student` or `teacher`, for errors.

    Raises:
        UserError: The model has no layer of a name.
    """
    modules, found = dict(model.named_modules()), {}
    unknown = sorted(layers - modules.keys())
    if unknown:
        near = difflib.get_close_matches(unknown[0], modules, n=1)
        raise UserError(
            f"the {whose} has no layer {unknown[0]!r}",
            where=_WHERE,
            instead=near[0] if near else f"a module's name such as {list(modules)[-1]!r}",
        )

    def keep(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            found[name] = output

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def layer_pairs(settings: IntermediateSettings, student: Any, teacher: Any) -> list[LayerPair]:
    """Returns the pairs of layers that a recipe compares; without `layer_mappings` those of `models.depth`.

    Args:
        settings: The loss on hidden states.
        student: A model with its `config`.
        teacher: A model with its `config`.

    Raises:
        UserError: There are no `layer_mappings`, and the student has more layers than the teacher.
    """
    return settings.pairs(lambda: default_layer_pairs(student.config.to_dict(), teacher.config.to_dict()))


def paired_outputs(
    pairs: Iterable[LayerPair], student: Mapping[str, Any], teacher: Mapping[str, Any]
) -> Iterator[tuple[Tensor, Tensor, str, float]]:
    """Yields (student's output, teacher's output, distance, weight) of each pair of layers.

    Args:
        pairs: The pairs of layers, from `layer_pairs`.
        student: Result of `recorded_outputs` for the student, after its forward pass.
        teacher: Result of `recorded_outputs` for the teacher, after its forward pass.

    Raises:
        UserError: A layer is not part of the forward pass, has no output of this number, or has another shape than the
            teacher's.
    """
    for layer, output, other, other_output, kind, weight in pairs:
        own, target = _picked(student, layer, output, "student"), _picked(teacher, other, other_output, "teacher")
        if own.shape != target.shape:
            raise UserError(
                f"the output of {layer} is {tuple(own.shape)}, the teacher's of {other} {tuple(target.shape)}",
                where=_WHERE,
                instead="layers of the same width",
            )
        yield own, target, kind, weight


def require_layers(student: Any, teacher: Any, settings: IntermediateSettings) -> None:
    """Checks the pairs of layers with models on torch's meta device, which have shapes but no weights.

    Raises:
        UserError: See `recorded_outputs` and `paired_outputs`.
    """
    pairs = layer_pairs(settings, student, teacher)
    ids = torch.zeros((1, 8), dtype=torch.long, device="meta")
    with (
        recorded_outputs(student, {layer for layer, *_ in pairs}, "student") as own,
        recorded_outputs(teacher, {layer for _, _, layer, *_ in pairs}, "teacher") as others,
        torch.no_grad(),
    ):
        try:
            (student if settings.add_origin_loss else student.base_model)(input_ids=ids)
            teacher.base_model(input_ids=ids)
        except Exception:  # a forward pass that depends on values cannot run without them; the names are checked
            return
    for _ in paired_outputs(pairs, own, others):
        pass


def _picked(outputs: Mapping[str, Any], layer: str, index: int, whose: str) -> Tensor:
    """Returns output number `index` of a layer with one or several output tensors."""
    if layer not in outputs:
        what = f"{layer} of the {whose} is not part of the encoder's forward pass, so that it has no output"
        raise UserError(what, where=_WHERE, instead="a layer of the encoder, e.g. bert.encoder.layer.0")
    output = outputs[layer]
    several = list(output.values()) if isinstance(output, dict) else output
    found = [several] if isinstance(several, Tensor) else list(several)
    if index >= len(found):
        raise UserError(
            f"{layer} has {len(found)} output(s), number {index} does not exist",
            where=_WHERE,
            instead=f"at most {len(found) - 1}",
        )
    if not isinstance(found[index], Tensor):
        raise UserError(f"output {index} of {layer} is not a tensor", where=_WHERE, instead="another output index")
    picked: Tensor = found[index]
    return picked
