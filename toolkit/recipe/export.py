"""The recipe's `export` section, and the variants that can be exported."""

from typing import Literal, get_args

from pydantic import Field

from toolkit.recipe.fields import Fraction, Number, Section

Variant = Literal["dense-fp32", "dense-int8", "sparse-fp32", "sparse-int8", "sparse-engine-fp32", "sparse-engine-int8"]


class Export(Section):
    """OpenVINO IR folders."""

    variants: tuple[Variant, ...] = Field(
        get_args(Variant),
        min_length=1,
        description="what to export and compare; sparse-engine-*: on the sparse kernel",
    )
    tolerance: Number = Field(
        0.02,
        gt=0,
        description="mean |IR - torch| of INT8 logits at most, as a share of their range; ten times that for any one",
    )
    metric_tolerance: Fraction = Field(0.01, description="largest |IR - torch| of the metric on the whole dev split")
