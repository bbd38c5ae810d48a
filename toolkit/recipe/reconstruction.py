"""Recipe sections for reconstruction, which the student's pruning can use instead of a back end."""

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from toolkit.recipe.fields import Count, Section, wrong
from toolkit.recipe.pruning import LOCK, SPARSE_GPT, Pruning

ReconstructionMethod = Literal["admm", "obs"]


class ReconstructionCalibration(Section):
    """The text on which the inputs of the matrices are measured: sequences of the corpus's train split."""

    sequences: Count = Field(
        512, description="number of sequences, drawn from the train split of `corpus` by the recipe's seed"
    )


class Reconstruction(Section):
    """Reconstruction at each mask update: zeros that change a layer's outputs least, and new values of the others."""

    method: ReconstructionMethod = Field(
        "admm",
        description="admm: ADMM, then least squares on the mask; obs: SparseGPT (optimal brain surgeon in blocks of "
        "columns), faster and less accurate",
    )
    calibration: ReconstructionCalibration = ReconstructionCalibration()
    error_correction: bool = Field(
        True, description="make up for the errors of earlier layers: aim at the dense outputs for the dense inputs"
    )


def _written_pruners(values: Any) -> list[dict[str, Any]]:
    """Returns the pruners of a section that is not validated yet; empty if it is not of that form."""
    for key in ("approach", "weight_compression", "pruners"):
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, list) and all(isinstance(pruner, dict) for pruner in values) else []


class StudentPruning(Pruning):
    """Pruning of the student, with or without reconstruction."""

    reconstruction: Reconstruction | None = Field(
        None,
        description="choose the zeros by the outputs of the layers and compute the kept weights again, from text alone;"
        " absent: the back end chooses, and only training changes weights",
    )

    @model_validator(mode="before")
    @classmethod
    def _names_of_inc(cls, values: Any) -> Any:
        """Reads INC 3's prune type `sparse_gpt`: magnitude, with reconstruction by OBS."""
        pruners = _written_pruners(values)
        named = [number for number, pruner in enumerate(pruners) if pruner.get("prune_type") == SPARSE_GPT]
        if not named:
            return values
        plain = [p | {"prune_type": "magnitude"} if n in named else p for n, p in enumerate(pruners)]
        compression = values["approach"]["weight_compression"] | {"pruners": plain}
        changed = values | {"approach": values["approach"] | {"weight_compression": compression}}
        section = values.get("reconstruction") or {}
        if not isinstance(section, dict):
            return changed  # which the section refuses
        if section.get("method", "obs") != "obs":
            at = ("approach", "weight_compression", "pruners", named[0], "prune_type")
            what = f"{SPARSE_GPT} is reconstruction by obs, not by {section['method']!r}"
            raise wrong(what, *at, instead="magnitude")
        return changed | {"reconstruction": section | {"method": "obs"}}

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves the key out if it is absent: cache keys stay those of recipes from before there was one."""
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if key != "reconstruction" or value is not None}

    @model_validator(mode="after")
    def _can_be_reconstructed(self) -> "StudentPruning":
        if self.reconstruction is None:
            return self
        if self.backend != type(self).model_fields["backend"].default:
            raise wrong("has no effect: reconstruction chooses the weights", "backend", instead="remove the key")
        for number, pruner in enumerate(self.approach.weight_compression.pruners):
            if pruner.prune_type not in ("magnitude", LOCK):
                at = ("approach", "weight_compression", "pruners", number, "prune_type")
                raise wrong(f"{pruner.prune_type} cannot be combined with reconstruction", *at, instead="magnitude")
        return self
