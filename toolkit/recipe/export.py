"""The recipe's `export` section, and the table of variants: what `sparse-int8` means is said here and nowhere else."""

from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import Field

from toolkit.recipe.fields import Fraction, Number, Section

VariantName = Literal[
    "dense-fp32", "dense-int8", "sparse-fp32", "sparse-int8", "sparse-engine-fp32", "sparse-engine-int8"
]


@dataclass(frozen=True)
class Variant:
    """One form in which a task's model is exported.

    Attributes:
        name: Name of the variant, and of its folder.
        sparse: The task's sparse model, not the dense task teacher.
        int8: Weights in 8 bits.
        source_stage: Stage whose checkpoint the variant is made from.
        colour: Colour of the variant in plots, as CSS writes it.
        base: For a variant on the sparse engine, the plain IR that is converted; None for a plain IR.
    """

    name: VariantName
    sparse: bool
    int8: bool
    source_stage: Literal["task_teacher", "transfer", "quantize"]
    colour: str
    base: VariantName | None = None

    @property
    def engine(self) -> bool:
        """Whether the pruned matrices run on the sparse engine."""
        return self.base is not None

    @property
    def plain(self) -> VariantName:
        """The plain IR: the variant itself, or the one that it is converted from."""
        return self.base or self.name


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("dense-fp32", False, False, "task_teacher", "#64748b"),
        Variant("dense-int8", False, True, "task_teacher", "#d97706"),
        Variant("sparse-fp32", True, False, "transfer", "#0d9488"),
        Variant("sparse-int8", True, True, "quantize", "#1d4ed8"),
        Variant("sparse-engine-fp32", True, False, "transfer", "#65a30d", base="sparse-fp32"),
        Variant("sparse-engine-int8", True, True, "quantize", "#be185d", base="sparse-int8"),
    )
}
# Every ratio is to the first; the second is what the recipe is run for; 8 bits may cost it so much against the third.
DENSE: VariantName = "dense-fp32"
SHIPPED: VariantName = "sparse-int8"
SHIPPED_FP32: VariantName = "sparse-fp32"


def engine_variant(name: str) -> VariantName | None:
    """The variant on the sparse engine that is made from a plain one; None if there is none."""
    return next((variant.name for variant in VARIANTS.values() if variant.base == name), None)


class Export(Section):
    """OpenVINO IR folders."""

    variants: tuple[VariantName, ...] = Field(
        get_args(VariantName),
        min_length=1,
        description="what to export and compare; sparse-engine-*: on the sparse kernel",
    )
    tolerance: Number = Field(
        0.02,
        gt=0,
        description="mean |IR - torch| of INT8 logits at most, as a share of their range; ten times that for any one",
    )
    metric_tolerance: Fraction = Field(0.01, description="largest |IR - torch| of the metric on the whole dev split")
