"""Synthetic but realistic manifests of a complete run, as returned by `graph.finished_manifests`."""

import math
import random
from typing import Any

from toolkit.core.artifacts import Artifact, Check, Manifest
from toolkit.measure import size
from toolkit.measure.size import Footprint, Matrix

LAYERS, HIDDEN, VOCABULARY = 6, 384, 30522
KINDS = {
    "attention.self.query": 1,
    "attention.self.key": 1,
    "attention.self.value": 1,
    "attention.output.dense": 1,
    "intermediate.dense": 4,
    "output.dense": 4,
}
MATRICES = [(f"bert.encoder.layer.{i}.{k}.weight", m * HIDDEN**2) for i in range(LAYERS) for k, m in KINDS.items()]
SPARSITY = 0.9
FOOTPRINT = Footprint(tuple(Matrix(n, round(n * (1 - SPARSITY))) for _, n in MATRICES), VOCABULARY * HIDDEN, 400_000)
PATTERN = {"sparsity": SPARSITY, "per_matrix": {n: SPARSITY + 0.0001 * (i % 5) for i, (n, _) in enumerate(MATRICES)}}
# Accuracy, .bin bytes, gzip bytes, ms at batch 1, ms at batch 8.
VARIANTS = {
    "dense-fp32": (0.822, 90.3e6, 83.6e6, 11.42, 88.1),
    "dense-int8": (0.819, 23.1e6, 17.9e6, 6.31, 47.9),
    "sparse-fp32": (0.745, 90.3e6, 50.1e6, 11.51, 88.7),
    "sparse-int8": (0.739, 23.1e6, 12.8e6, 6.28, 47.2),
}
COMMAND = (
    "benchmark_app -m ../export/{v}/openvino_model.xml -d CPU -hint none -nstreams 1 -nthreads 2 -api sync -nireq 1 "
    "-t 3 -infer_precision f32 -shape 'input_ids[{b},128],attention_mask[{b},128],token_type_ids[{b},128]' "
    "-i input_ids:inputs/b{b}_input_ids.npy,attention_mask:inputs/b{b}_attention_mask.npy"
)


def performance(variant: str, batch: int, ms: float) -> dict[str, Any]:
    samples = [ms * f for f in (0.99, 1.0, 1.03)]
    throughputs = [1000 * batch / s for s in samples]
    return {
        "batch": batch,
        "sequence_length": 128,
        "threads": 2,
        "streams": 1,
        "latency_ms_median": samples[1],
        "latency_ms_low": samples[0],
        "latency_ms_high": samples[2],
        "throughput_median": throughputs[1],
        "samples_ms": samples,
        "rounds": [{"median_ms": s, "throughput": t} for s, t in zip(samples, throughputs, strict=True)],
        "command": COMMAND.format(v=variant, b=batch),
    }


def measured(variant: str, shift: float = 0.0) -> dict[str, Any]:
    accuracy, file, gzip, one, eight = VARIANTS[variant]
    sizes = {size.FILE: int(file), size.GZIP: int(gzip)}
    value_bytes = 1 if variant.endswith("int8") else 4
    return {
        "accuracy": {"accuracy": accuracy + shift},
        "sizes": sizes | FOOTPRINT.sizes(value_bytes=value_bytes, sparse=variant.startswith("sparse")),
        "performance": [performance(variant, 1, one), performance(variant, 8, eight)],
    }


def curve(steps: int, *, pruned: bool = False) -> tuple[dict[str, float], ...]:
    noise = random.Random(steps)
    rows = []
    for step in range(5, steps + 1, 5):
        progress = step / steps
        loss = 0.8 + 3 * math.exp(-4 * progress) + noise.gauss(0, 0.06)
        row = {"step": float(step), "loss": loss, "task_loss": loss * 0.9, "kd_loss": loss * 1.1}
        row["learning_rate"] = 1e-4 * (1 - (progress % 0.1 if pruned and progress < 0.5 else progress))
        if pruned:
            row["sparsity"] = SPARSITY * (1 - max(0.0, 1 - 2 * (step // 20 * 20) / steps) ** 3)
        rows.append(row)
    return tuple(rows)


def manifest(stage: str, task: str | None = None, **values: Any) -> Manifest:
    folder = f"tasks/{task}/{stage}" if task else stage
    digest = format(abs(hash((stage, task))), "064x")
    defaults: dict[str, Any] = {
        "key": digest,
        "config": {},
        "inputs": {},
        "seed": 42,
        "artifact": Artifact(kind="measurement", path=folder, sha256=digest),
        "versions": {"python": "3.11.7", "torch": "2.13.0", "openvino": "2026.4.1"},
        "machine": {"cpu": "Some CPU @ 2.60GHz", "isa": ["avx2"], "cores": 2, "memory_gb": 7.8, "os": "Linux 6.1"},
        "commit": "c2724d6a63e2",
        "started": "2031-02-03T04:05:06+00:00",
        "seconds": 83.4,
    }
    return Manifest(stage=stage, task=task, **(defaults | values))


def task_manifests(task: str, n: int, shift: float, variants: tuple[str, ...]) -> list[Manifest]:
    trained = {"train_n": 9_596, "dev_n": n, "counts": {"accuracy": n}, "seconds_per_step": 0.2}
    train = {"batch_size": 32, "gradient_accumulation_steps": 1}
    lock = Check(name="non-zero weights outside the mask", ok=True, measured=0.0, limit=0.0)
    matmuls = [
        {
            "name": f"/{name}/MatMul",
            "weight_name": "",
            "module": name.removesuffix(".weight"),
            "shape": [HIDDEN, HIDDEN],
            "stored_type": "i8",
            "weight_granularity": "per_channel",
            "weight_scheme": "sym",
            "zero_fraction": 0.9003,
            "activation_scheme": "asym",
            "input_fake_quantized": True,
        }
        for name, _ in MATRICES
    ]
    accuracies = {v: VARIANTS[v][0] + shift for v in variants}
    return [
        manifest(
            "task_teacher",
            task,
            config={"task_teacher": {"train": train}},
            metrics=trained | {"steps": 250, "examples_seen": 8000, "dev": {"accuracy": 0.822}},
            history=curve(250),
        ),
        manifest(
            "transfer",
            task,
            config={"transfer": {"distillation": {"train": train}}},
            metrics=trained | {"steps": 300, "examples_seen": 9600, "dev": {"accuracy": 0.745}} | PATTERN,
            history=curve(300),
            checks=(lock,),
        ),
        manifest(
            "quantize",
            task,
            config={"quantize": {"distillation": {"train": train}}},
            metrics=trained | {"steps": 100, "examples_seen": 3200, "dev": {"accuracy": 0.739}} | PATTERN,
            history=curve(100),
            checks=(lock,),
        ),
        manifest(
            "export",
            task,
            inputs={"quantize": "ab" * 32},
            metrics={
                "variants": {
                    v: {
                        "matmuls": matmuls,
                        "max_abs_diff": 0.0123,
                        "logit_range": 4.56,
                        "torch": {"accuracy": accuracies[v]},
                        "ir": {"accuracy": accuracies[v]},
                        "dev_n": n,
                    }
                    for v in variants
                },
                "left_out": {"sparse-engine-fp32": "no compiler & no luck"},
            },
            checks=(Check(name="sparse-int8: |IR - torch| of accuracy", ok=True, measured=0.0009, limit=0.01),),
        ),
        manifest(
            "benchmark",
            task,
            inputs={"export": "cd" * 32},
            metrics={
                "dev_n": n,
                "metrics": ["accuracy"],
                "note": "films, split by film <b>",
                "variants": {v: measured(v, shift) for v in variants},
                "sizes_reference": FOOTPRINT.reference(),
                "accuracy_criterion": {
                    "kind": "relative",
                    "metric": "accuracy",
                    "reference": 0.745,
                    "promised": 0.01,
                    "measured": 0.0081,
                    "met": True,
                },
            },
            data={"reviews.csv.bz2": {"sha256": "ef" * 32, "rows": 10_662}},
        ),
    ]


def run_manifests(
    tasks: tuple[str, ...] = ("films",),
    steps: int = 250,
    n: int = 1066,
    shift: float = 0.0,
    variants: tuple[str, ...] = tuple(VARIANTS),
) -> list[Manifest]:
    """Manifests of a complete run, as returned by `graph.finished_manifests`."""
    train = {"batch_size": 16, "gradient_accumulation_steps": 2}
    student = manifest(
        "student",
        config={"student": {"distillation": {"train": train}}},
        inputs={"teacher": "12" * 32},
        metrics={
            "steps": steps,
            "tokens_seen": 287_310,
            "tokens_per_second": 1_234.0,
            "target_sparsity": SPARSITY,
            "prunable_weights": FOOTPRINT.encoder,
            "backend": "inc",
        }
        | PATTERN,
        history=curve(steps, pruned=True),
        checks=(Check(name="sparsity of each matrix, off target by", ok=True, measured=0.0004, limit=0.001),),
        data={"corpus": {"train_sequences": 9_000, "train_tokens": 402_113}},
    )
    teacher = manifest(
        "teacher",
        config={"teacher": {"train": train}},
        metrics={"steps": 100, "tokens_seen": 114_924},
        history=curve(100),
    )
    return [teacher, student, *(m for t in tasks for m in task_manifests(t, n, shift, variants))]
