"""The stages and the variants of a run as flat rows of numbers and texts, for scripts and data frames."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.core.artifacts import Manifest, failed_checks
from toolkit.reporting.claims_table import Quantity, claims_table


def stage_rows(manifests: Sequence[Manifest], folder: Path) -> list[dict[str, Any]]:
    """Returns one row per finished stage: its folder, duration, scores on the dev split and number of checks."""
    return [
        {
            "task": m.task,
            "stage": m.stage,
            "folder": str(folder / m.artifact.path),
            "seconds": m.seconds,
            "dev": m.metrics.get("dev", {}),
            "sparsity": m.metrics.get("sparsity"),
            "checks": len(m.checks),
            "failed_checks": [check.name for check in failed_checks(m.checks)],
        }
        for m in manifests
    ]


def variant_rows(manifests: Sequence[Manifest], folder: Path) -> list[dict[str, Any]]:
    """Returns one row per benchmarked variant of each task, with the figures of the claims table.

    Scores have their own names (`accuracy`), `n` is the number of dev examples; sizes are in bytes, of the .bin, of its
    gzip and of the encoder as the paper counts it; latency in milliseconds and throughput in examples per second, each
    with its batch size. A figure that was not measured is None.

    Args:
        manifests: Manifests of a run.
        folder: Its run folder.
    """
    rows = []
    for manifest in (m for m in manifests if m.stage == "benchmark"):
        head = claims_table(manifest)
        for variant in head.variants:
            rows.append(
                {
                    "task": head.task,
                    "variant": variant.name,
                    "folder": str(folder / "tasks" / head.task / "export" / variant.name),
                    **{score.metric: score.value for score in variant.scores},
                    "n": variant.scores[0].n,
                    "file_bytes": _value(variant.file),
                    "gzip_bytes": _value(variant.gzip),
                    "encoder_bytes": _value(variant.encoder),
                    "latency_ms": _value(variant.latency),
                    "latency_batch": head.latency_batch,
                    "examples_per_second": _value(variant.throughput),
                    "throughput_batch": head.throughput_batch,
                    "speed_up": variant.latency.ratio if variant.latency else None,
                }
            )
    return rows


def _value(quantity: Quantity | None) -> float | None:
    return None if quantity is None else quantity.value
