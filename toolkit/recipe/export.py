"""Recipe section `export`, and the table of export variants, which is the only definition of their properties."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from pydantic import Field

from toolkit.recipe.fields import Fraction, Number, Section

VariantName = Literal[
    "dense-fp32", "dense-int8", "sparse-fp32", "sparse-int8", "sparse-engine-fp32", "sparse-engine-int8"
]


@dataclass(frozen=True)
class Variant:
    """A variant in which a task's model is exported.

    Attributes:
        name: Name of the variant and of its folder.
        sparse: Whether the variant is the task's sparse model; otherwise the dense task teacher.
        int8: Whether weights are in 8 bits.
        source_stage: Stage whose checkpoint is exported.
        colour: CSS colour of the variant in plots on a light page.
        dark_colour: The same on a dark page.
        base: For a sparse-engine variant, the plain IR that it is converted from; None for a plain IR.
    """

    name: VariantName
    sparse: bool
    int8: bool
    source_stage: Literal["task_teacher", "transfer", "quantize"]
    colour: str
    dark_colour: str
    base: VariantName | None = None

    @property
    def engine(self) -> bool:
        """Whether the variant uses the sparse engine for the pruned matrices."""
        return self.base is not None

    @property
    def plain(self) -> VariantName:
        """Name of the plain IR: the variant itself, or the one that it is converted from."""
        return self.base or self.name


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("dense-fp32", False, False, "task_teacher", "#64748b", "#94a3b8"),
        Variant("dense-int8", False, True, "task_teacher", "#c2610c", "#fbbf24"),
        Variant("sparse-fp32", True, False, "transfer", "#0f766e", "#2dd4bf"),
        Variant("sparse-int8", True, True, "quantize", "#1d4ed8", "#60a5fa"),
        Variant("sparse-engine-fp32", True, False, "transfer", "#4d7c0f", "#a3e635", base="sparse-fp32"),
        Variant("sparse-engine-int8", True, True, "quantize", "#be185d", "#f472b6", base="sparse-int8"),
    )
}
# Baseline of all ratios; main result of a recipe; its FP32 reference for the accuracy criterion.
DENSE: VariantName = "dense-fp32"
SHIPPED: VariantName = "sparse-int8"
SHIPPED_FP32: VariantName = "sparse-fp32"
DENSE_INT8: VariantName = "dense-int8"


def variants_of_dense(names: Iterable[VariantName]) -> tuple[Variant, ...]:
    """Returns the variants in which a model without zeros is exported, where these were asked for.

    What is quantized is the model of `transfer`, and its FP32 variant is the baseline: both are dense.
    """
    asked = {VARIANTS[name] for name in names}
    return tuple(
        replace(dense, source_stage=sparse.source_stage)
        for dense, sparse in ((VARIANTS[DENSE], VARIANTS[SHIPPED_FP32]), (VARIANTS[DENSE_INT8], VARIANTS[SHIPPED]))
        if asked & {dense, sparse}
    )


def engine_variant(name: str) -> VariantName | None:
    """Returns the sparse-engine variant that is converted from a plain one; None if there is none."""
    return next((variant.name for variant in VARIANTS.values() if variant.base == name), None)


class Export(Section):
    """Export to OpenVINO IR."""

    variants: tuple[VariantName, ...] = Field(
        get_args(VariantName),
        min_length=1,
        description="variants to export and compare; sparse-engine-*: pruned matrices use the sparse kernels",
    )
    exact_activations: bool = Field(
        False,
        description="sparse-engine-int8: keep queries, keys and the activations of matrices without blocks in FP32 "
        "(8-bit weights, FP32 arithmetic); slower on CPUs with VNNI",
    )
    tolerance: Number = Field(
        0.02,
        gt=0,
        description="maximum mean |IR - torch| of INT8 logits, as a fraction of their range; tenfold for any one logit",
    )
    metric_tolerance: Fraction = Field(0.01, description="maximum |IR - torch| of the metric on the complete dev split")
