"""Checks the modules that a recipe names, `layer_mappings` and `op_wise`, with models that have shapes but no weights.

Only these names need torch and transformers, which are loaded if a recipe has them.
"""

from typing import Any

from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.pipeline.ready_models import origins
from toolkit.recipe import Distillation, Kind, Quantize, Recipe, StudentDistillation


def check_module_names(recipe: Recipe, inputs: ResolvedInputs) -> None:
    """Checks every pair of layers and every expression on operations of a recipe.

    Raises:
        UserError: A layer or an operation does not exist, or the outputs of two layers have other shapes.
    """
    if recipe.student is not None:
        first = recipe.ready.get("teacher", recipe.model.source)
        _check_layers(recipe.student.distillation, (first, None), (first, None), inputs)
    for name, task in recipe.tasks.items():
        sources = {stage: origin.source for stage, origin in origins(recipe, name).items()}
        student, teacher = sources.get("transfer"), sources.get("task_teacher")
        for stage in ("transfer", "quantize"):
            section = recipe.section(stage, name) if stage not in task.ready else None
            if section is not None and student and teacher:
                _check_layers(section.distillation, (student, task.kind), (teacher, task.kind), inputs)
        quantize = recipe.section("quantize", name)
        if quantize is not None and student:
            _check_operations(quantize, (student, task.kind), inputs)


def _check_layers(
    distillation: Distillation | StudentDistillation | None,
    student: tuple[str, Kind | None],
    teacher: tuple[str, Kind | None],
    inputs: ResolvedInputs,
) -> None:
    settings = distillation.train.criterion.layers if distillation else None
    if settings is None:
        return
    from toolkit.training.layer_outputs import require_layers

    own, other = _shapes(*student, inputs), _shapes(*teacher, inputs)
    if own is not None and other is not None:
        require_layers(own, other, settings)


def _check_operations(quantize: Quantize, source: tuple[str, Kind | None], inputs: ResolvedInputs) -> None:
    if not quantize.quantization.op_wise:
        return
    from toolkit.quantization.operations import possible_ops
    from toolkit.quantization.per_operation import check_names

    model = _shapes(*source, inputs)
    if model is not None:
        check_names(quantize.quantization, possible_ops(model))


def _shapes(source: str, kind: Kind | None, inputs: ResolvedInputs) -> Any | None:
    """Returns a model without weights; None if its sizes are not known, or its config has errors reported elsewhere."""
    from toolkit.models.load import model_of_shapes

    config = inputs.model(source).config
    return model_of_shapes(config, kind) if config else None
