"""The grid of the search: sizes of a student, and the overrides that make a recipe train one of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.recipe import Recipe, StudentPruning

_DEPTHS = (1.0, 2 / 3, 1 / 2)  # of the dense model's layers
# Rows of a block -> fractions of zeros; with fewer the sparse kernels are not used (`ir/products.BREAK_EVEN`).
_ZEROS = {1: (0.7, 0.8, 0.9), 4: (0.5, 0.6, 0.7, 0.8, 0.9)}
_WEIGHTS = "student.pruning.approach.weight_compression"


@dataclass(frozen=True, order=True)
class Point:
    """A size of a student.

    Attributes:
        layers: Number of encoder layers.
        zeros: Fraction of the weights that are zero in each pruned matrix; 0: the student is dense.
        block: Rows of the blocks that are zero together; 1: single weights.
    """

    layers: int
    zeros: float = 0.0
    block: int = 1

    @property
    def label(self) -> str:
        """Name in tables and files, such as `4 layers, 80 % 4x1`."""
        depth = f"{self.layers} layer{'s' * (self.layers > 1)}"
        return f"{depth}, {self.zeros:.0%} {self.block}x1".replace("%", " %") if self.zeros else f"{depth}, dense"

    @property
    def file_name(self) -> str:
        """Name of the point's files in the search folder."""
        return self.label.replace(" %", "").replace(", ", "-").replace(" ", "-")

    def keeps_more_than(self, other: "Point") -> bool:
        """Returns whether the point has all that another one has, and more, so that its score is no worse."""
        return self != other and (
            self.layers >= other.layers and self.zeros <= other.zeros and (not self.zeros or self.block <= other.block)
        )


def grid(total: int) -> list[Point]:
    """Returns the sizes that are tried, the dense model itself first.

    Args:
        total: Number of encoder layers of the dense model.
    """
    depths = sorted({math.ceil(total * share - 1e-9) for share in _DEPTHS}, reverse=True)
    kinds = [(0.0, 1), *((zeros, block) for block, each in _ZEROS.items() for zeros in each)]
    return [Point(layers, zeros, block) for layers in depths for zeros, block in kinds]


def overrides(recipe: Recipe, point: Point, kept: Sequence[int] | None = None) -> list[str]:
    """Returns the overrides with which a recipe trains a student of this size.

    Args:
        recipe: The recipe, which has a student.
        point: The size.
        kept: Numbers of the layers that are kept; None: all of them.
    """
    assert recipe.student is not None
    found, pruning = list[str](), recipe.student.pruning
    if kept is not None or recipe.student.layers is not None:
        found.append(f"student.layers={'null' if kept is None else list(kept)}")
    if not point.zeros:
        found.append("student.pruning=null")
    elif pruning is None:
        found.append("student.pruning={reconstruction: {}}")
    elif pruning.reconstruction is None:
        found.append("student.pruning.reconstruction={}")
        if pruning.backend != (default := type(pruning).model_fields["backend"].default):
            found.append(f"student.pruning.backend={default}")
        if _has_ramp(pruning):  # once, before training, not at each update of the ramp
            found += [f"{_WEIGHTS}.start_step=0", f"{_WEIGHTS}.end_step=0"]
    if point.zeros:
        found += [f"{_WEIGHTS}.target_sparsity={point.zeros:g}", f"{_WEIGHTS}.pattern=tile_pattern_{point.block}x1"]
    if kept is not None:  # which `transfer.reconstruction` does not support
        own = {f"tasks.{t}.transfer" if recipe.transfer is None else "transfer" for t in _reconstructed(recipe)}
        found += [f"{section}.reconstruction=null" for section in sorted(own)]
    if recipe.export is not None and in_8_bits(recipe):
        variants = ["dense-int8", "sparse-int8", *(["sparse-engine-int8"] if point.zeros else [])]
        found.append(f"export.variants=[{', '.join(variants)}]")
    return found


def in_8_bits(recipe: Recipe) -> bool:
    """Returns whether a recipe quantizes the models of all its tasks."""
    return all(recipe.section("quantize", name) is not None for name in recipe.tasks)


def _has_ramp(pruning: StudentPruning) -> bool:
    compression = pruning.approach.weight_compression
    return any(
        getattr(section, key) for section in (compression, *compression.pruners) for key in ("end_step", "end_epoch")
    )


def _reconstructed(recipe: Recipe) -> list[str]:
    sections = {name: recipe.section("transfer", name) for name in recipe.tasks}
    return [name for name, section in sections.items() if section is not None and section.reconstruction]
