"""Checks the modules that a recipe names, `layer_mappings` and `op_wise`, with models that have shapes but no weights.

Only these names need torch and transformers, which are loaded if a recipe has them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.core.errors import UserError
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.models.architectures import hidden_size
from toolkit.models.depth import default_layer_pairs, shallower
from toolkit.pipeline.ready_models import origins
from toolkit.recipe import Distillation, Kind, Quantize, Recipe, StudentDistillation


def check_module_names(recipe: Recipe, inputs: ResolvedInputs) -> None:
    """Checks every pair of layers and every expression on operations of a recipe.

    Raises:
        UserError: A layer or an operation does not exist, or the outputs of two layers have other shapes.
    """
    layers = recipe.student.layers if recipe.student is not None else None
    if recipe.student is not None:
        first = recipe.ready.get("teacher", recipe.model.source)
        _check_layers(recipe.student.distillation, _Model(first, None, layers), _Model(first, None), inputs)
    for name, task in recipe.tasks.items():
        sources = {stage: origin.source for stage, origin in origins(recipe, name).items()}
        cut = layers if "student" not in recipe.ready and "transfer" not in task.ready else None
        student = _Model(sources["transfer"], task.kind, cut) if "transfer" in sources else None
        teacher = _Model(sources["task_teacher"], task.kind) if "task_teacher" in sources else None
        for stage in ("transfer", "quantize"):
            section = recipe.section(stage, name) if stage not in task.ready else None
            if section is not None and student and teacher:
                _check_layers(section.distillation, student, teacher, inputs)
        quantize = recipe.section("quantize", name)
        if quantize is not None and student:
            _check_operations(quantize, student, inputs)


@dataclass(frozen=True)
class _Model:
    """A model of a stage.

    Attributes:
        source: The checkpoint that it comes from.
        kind: Kind of the task that its head is for; None: masked language modelling.
        layers: The layers of the checkpoint that it keeps, or how many; None: all.
    """

    source: str
    kind: Kind | None
    layers: int | tuple[int, ...] | None = None

    def config(self, inputs: ResolvedInputs) -> Mapping[str, Any] | None:
        """Returns its `config.json`; None if that is not known."""
        config = inputs.model(self.source).config
        return shallower(config, self.layers) if config and self.layers is not None else config

    def without_weights(self, inputs: ResolvedInputs) -> Any | None:
        """Returns it without weights; None if its sizes are not known, or its config has errors reported elsewhere."""
        from toolkit.models.load import model_of_shapes

        config = self.config(inputs)
        return model_of_shapes(config, self.kind) if config else None


def _check_layers(
    distillation: Distillation | StudentDistillation | None, student: _Model, teacher: _Model, inputs: ResolvedInputs
) -> None:
    settings = distillation.train.criterion.layers if distillation else None
    if settings is None:
        return
    if not settings.layer_mappings:
        _check_all_layers(student.config(inputs), teacher.config(inputs))
        return
    from toolkit.training.layer_outputs import require_layers

    own, other = student.without_weights(inputs), teacher.without_weights(inputs)
    if own is not None and other is not None:
        require_layers(own, other, settings)


def _check_all_layers(student: Mapping[str, Any] | None, teacher: Mapping[str, Any] | None) -> None:
    """Checks that all layers can be compared without `layer_mappings`, by their number and their width alone."""
    if not student or not teacher:
        return
    default_layer_pairs(student, teacher)
    own, other = hidden_size(student), hidden_size(teacher)
    if own != other:
        raise UserError(
            f"the outputs of the student's layers have {own} features, those of the teacher's {other}",
            where="IntermediateLayersKnowledgeDistillationLoss",
            instead="a teacher of the student's width, or KnowledgeDistillationLoss alone",
        )


def _check_operations(quantize: Quantize, student: _Model, inputs: ResolvedInputs) -> None:
    if not quantize.quantization.op_wise:
        return
    from toolkit.quantization.operations import possible_ops
    from toolkit.quantization.per_operation import check_names

    model = student.without_weights(inputs)
    if model is not None:
        check_names(quantize.quantization, possible_ops(model))
