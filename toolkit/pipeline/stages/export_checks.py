"""Tolerances and checks of exported IRs."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.artifacts import Check
from toolkit.ir.conformance import mismatches
from toolkit.measure.significance import change_by_chance, is_proportion, mcnemar
from toolkit.models.checkpoint import MIN_SPARSITY, encoder_matrices, sparsity_by_tensor
from toolkit.recipe import Quantization
from toolkit.sparsity.mask_file import require_fitting_mask

if TYPE_CHECKING:
    import numpy as np

    from toolkit.data.tasks import Measure, TaskData
    from toolkit.ir.inspect import IRInspection

FP32_TOLERANCE = 1e-3  # fraction of the logits' range
ENGINE_TOLERANCE = 1e-4
# Limit of the mean difference with 8-bit activations: the last bit of a float may decide which of two quantization
# levels is nearer, and one level in a layer shifts many in the next. A trained MiniLM differed by 1e-3, its plain INT8
# IR by 8e-3.
ENGINE_INT8_TOLERANCE = 5e-3
SIGNIFICANT = 0.05  # p value from which on a change of a metric may be due to chance
# What to do about a failed check.
_METRIC_INSTEAD = (
    "a larger `export.metric_tolerance` if this change is acceptable; else look for what the IR computes differently"
)
LOGIT_INSTEAD = (
    "a larger `export.tolerance` if the metrics above are acceptable, or `quantize.quantization.op_wise` to keep the "
    "operations in FP32 that the IR computes differently"
)
FIXED = "no key changes this limit: the IR computes something else than the model; please report it with this folder"
SINGLE_LOGIT_FACTOR = 10  # single INT8 logits: factor on the tolerance of the mean, which could hide one wrong logit


@dataclass(frozen=True)
class LogitDifferences:
    """Differences between two sets of logits of the same examples.

    Attributes:
        largest: Largest absolute difference.
        mean: Mean absolute difference.
        extent: Range of the reference logits.
        magnitude: Largest absolute value of the reference logits.
    """

    largest: float
    mean: float
    extent: float
    magnitude: float

    @classmethod
    def between(
        cls, reference: "Sequence[np.ndarray] | np.ndarray", logits: "Sequence[np.ndarray] | np.ndarray"
    ) -> "LogitDifferences":
        """Compares the logits of all examples; rows may differ in length."""
        import numpy as np

        expected, found = (np.concatenate([row.ravel() for row in rows]) for rows in (reference, logits))
        differences = np.abs(found - expected)
        extent, magnitude = expected.max() - expected.min(), np.abs(expected).max()
        return cls(float(differences.max()), float(differences.mean()), float(extent), float(magnitude))

    def shares(self) -> tuple[float, float]:
        """Returns the largest and the mean difference as fractions of the range, or of a tenth of the largest logit.

        The larger of both is taken: rounding is relative to the logits, of which some models return nearly the same
        for every example.
        """
        unit = max(self.extent, self.magnitude / 10) or 1.0
        return self.largest / unit, self.mean / unit

    def figures(self) -> dict[str, float]:
        """Returns the differences under their keys in the manifest."""
        return {"max_abs_diff": self.largest, "mean_abs_diff": self.mean, "logit_range": self.extent}


def check_at_most(variant: str, name: str, measured: float, limit: float, instead: str = "") -> Check:
    """Returns the check that a figure of a variant is at most `limit`."""
    return Check(name=f"{variant}: {name}", ok=measured <= limit, measured=measured, limit=limit, instead=instead)


def check_metrics(
    variant: str,
    compared: str,
    before: Mapping[str, float],
    after: Mapping[str, float],
    task: "TaskData",
    tolerance: float,
    logits: "tuple[Sequence[np.ndarray], Sequence[np.ndarray]] | None" = None,
) -> list[Check]:
    """Returns one check per metric: on the complete dev split it changes by at most `tolerance`, or by chance.

    A few of the examples that a model is least sure of may flip with the last bits of its logits. On a small dev split
    they exceed any tolerance, so that a larger change also has to be significant in a paired test of the examples.

    Args:
        variant: Name of the variant.
        compared: The two models compared, as the check's name shows them.
        before: Metric name -> score of the reference.
        after: Metric name -> score of the variant.
        task: The task, with its metrics.
        tolerance: Largest absolute difference, `export.metric_tolerance`.
        logits: Logits of both models for each item of `dev`; None: only the scores are known.
    """
    checks = []
    for m in task.measures:
        change = after[m.name] - before[m.name]
        check = check_at_most(
            variant, f"|{compared}| {m.name} on all {m.n} dev examples", abs(change), tolerance, _METRIC_INSTEAD
        )
        if not check.ok:
            p = _p_value(task, m, change, logits)
            shown = {} if p is None else {"measured": f"{abs(change):.4g}, p = {p:.2g}", "limit": _or_chance(tolerance)}
            check = check.model_copy(update={"ok": p is not None and p >= SIGNIFICANT, **shown})
        checks.append(check)
    return checks


def _p_value(
    task: "TaskData",
    measure: "Measure",
    change: float,
    logits: "tuple[Sequence[np.ndarray], Sequence[np.ndarray]] | None",
) -> float | None:
    """Returns how often chance changes a score as much; None if that is unknown, without the logits.

    Of two fractions alone the smallest possible value is known: that of no example flipping the other way.
    """
    if logits is not None:
        return change_by_chance(task, measure, *logits)
    return mcnemar(round(abs(change) * measure.n), 0) if is_proportion(measure.metric) else None


def _or_chance(tolerance: float) -> str:
    return f"{tolerance:g}, or p >= {SIGNIFICANT:g} (paired test)"


def pruned_matrices(folder: Path) -> dict[str, float]:
    """Returns the fraction of zeros of each pruned encoder matrix of a checkpoint, whether or not it has a mask file.

    Raises:
        UserError: The checkpoint has a mask file that does not fit its zeros.
    """
    names = encoder_matrices(folder)
    require_fitting_mask(folder, names)
    return {name: zeros for name, zeros in sparsity_by_tensor(folder, names).items() if zeros > MIN_SPARSITY}


def check_zeros(variant: str, inspection: "IRInspection", zeros: Mapping[str, float]) -> list[Check]:
    """Returns the checks that every pruned matrix is in the IR with at least its zeros; none for a dense model.

    Args:
        variant: Name of the variant.
        inspection: Content of the IR.
        zeros: Pruned matrix -> fraction of zeros in the checkpoint that the variant is made from.
    """
    found = {f"{m.module}.weight": m.zero_fraction for m in inspection.matmuls if m.module}
    present = zeros.keys() & found.keys()
    if not zeros:
        return []
    return [
        Check(
            name=f"{variant}: pruned matrices found in the IR",
            ok=len(present) == len(zeros),
            measured=float(len(present)),
            limit=float(len(zeros)),
        ),
        check_at_most(
            variant,
            "zeros lost in a matrix, share",
            max((0.0, *(zeros[name] - found[name] for name in present))),
            1e-6,
            FIXED,
        ),
    ]


def check_quantization(
    variant: str, inspection: "IRInspection", section: Quantization, returned: tuple[str, ...]
) -> Check:
    """Returns the check that all operations are quantized as the recipe requests, except those kept in FP32."""
    broken = mismatches(inspection, section, returned)
    return Check(
        name=f"{variant}: operations that are not quantized as asked for",
        ok=not broken,
        measured="; ".join(broken[:3]) or 0.0,
        limit=0.0,
    )


def weights_hash(model: Any) -> str:
    """Returns the SHA-256, hex, over the names and values of all tensors of a model."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
