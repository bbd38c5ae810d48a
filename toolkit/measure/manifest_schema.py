"""What the manifests of each stage record: keys, types and ranges, as reports, estimates and `inspect` read them.

A manifest may come from another version of the toolkit, or have been damaged or edited.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from toolkit.core.artifacts import Manifest
from toolkit.core.errors import UserError
from toolkit.core.files import MANIFEST
from toolkit.measure.size import FILE, GZIP
from toolkit.recipe import AccuracyCriterion, VariantName

# Far above anything measured, and small enough for every computation and display of a report.
Number = Annotated[float, Field(ge=-1e15, le=1e15)]
Amount = Annotated[float, Field(ge=0, le=1e15)]
Count = Annotated[int, Field(ge=0, le=10**15)]
Positive = Annotated[int, Field(gt=0, le=10**15)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Score = Annotated[float, Field(ge=-1, le=1)]  # a correlation may be negative


def _with_fractions(scores: dict[str, float]) -> dict[str, float]:
    if any(value < 0 for name, value in scores.items() if name.startswith(("accuracy", "exact_match"))):
        raise ValueError("a fraction of the examples is negative")
    return scores


def _with_files(sizes: dict[str, float]) -> dict[str, float]:
    if not {FILE, GZIP} <= sizes.keys():
        raise ValueError("the size of the .bin file is missing")
    return sizes


def _with_step(row: dict[str, float]) -> dict[str, float]:
    if "step" not in row:
        raise ValueError("a row without a step")
    return row


Scores = Annotated[dict[str, Score], AfterValidator(_with_fractions)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Trial(_Record):
    number: Count
    returned: list[str]
    metric: Number
    loss: Number
    met: bool


class _Tuning(_Record):
    examples: Count
    metric: str
    reference: Number
    kind: str
    limit: Number
    objective: str
    trials: Annotated[list[_Trial], Field(min_length=1)]
    costs: dict[str, Amount]
    kept: Count
    met: bool
    returned: list[str]
    sensitivity: dict[str, Any]


class _Criterion(_Record):
    kind: str
    metric: str
    promised: Number
    measured: Number
    met: bool


class _Round(_Record):
    throughput: Amount


class _Performance(_Record):
    batch: Positive
    sequence_length: Positive
    threads: Count
    streams: Count
    latency_ms_median: Amount
    latency_ms_low: Amount
    latency_ms_high: Amount
    throughput_median: Amount
    samples_ms: list[Amount]
    rounds: list[_Round] = []
    command: str


class _Measured(_Record):
    accuracy: Scores
    chance: Number | None = None
    sizes: Annotated[dict[str, Amount], AfterValidator(_with_files)]
    performance: list[_Performance]


class _MatMul(_Record):
    name: str
    module: str
    shape: list[Count]
    stored_type: str
    weight_granularity: str
    zero_fraction: Fraction
    activation_scheme: str
    input_fake_quantized: bool = False


class _Exported(_Record):
    matmuls: list[_MatMul]
    max_abs_diff: Number
    logit_range: Number
    torch: Scores | None = None  # variants on the sparse engine are compared with their plain IRs
    ir: Annotated[Scores, Field(min_length=1)]
    dev_n: Positive
    counts: dict[str, Positive] = {}  # metric -> number of examples; not in older exports
    made_from: str = ""  # stage of the checkpoint; not in older exports


class _Training(_Record):
    steps: Count | None = None  # none without training
    examples_seen: Count | None = None
    train_n: Count | None = None
    tokens_seen: Count | None = None
    tokens_per_second: Amount | None = None
    seconds_per_step: Amount | None = None
    bf16: bool | None = None
    rows_left_out: list[str] = []


class _Sparse(_Record):
    sparsity: Fraction
    per_matrix: dict[str, Fraction]
    target_sparsity: Fraction | None = None
    prunable_weights: Count | None = None
    backend: str | None = None


class _Depth(_Record):
    kept_layers: Annotated[list[Count], Field(min_length=1)]
    layers_before: Positive


class _Error(_Record):
    before: Amount
    after: Amount


class _Reconstruction(_Record):
    method: str
    error_correction: bool
    sequences: Positive
    tokens: Positive
    seconds: Amount
    matrices: dict[str, _Error]
    layers: Annotated[dict[str, _Error], Field(min_length=1)]


class _Student(_Training, _Sparse):
    steps: Count  # none if the student is only reconstructed
    reconstruction: _Reconstruction | None = None

    @model_validator(mode="after")
    def _made_somehow(self) -> Self:
        if not self.steps and self.reconstruction is None:
            raise ValueError("a student that was neither trained nor reconstructed")
        return self


class _OnTask(_Training):
    dev: Scores
    dev_n: Positive
    counts: dict[str, Positive] = {}


class _TransferReconstruction(_Record):
    examples: Positive
    tokens: Positive
    seconds: Amount
    matrices: Annotated[dict[str, _Error], Field(min_length=1)]


class _Transfer(_OnTask, _Sparse):
    reconstruction: _TransferReconstruction | None = None


class _Quantize(_OnTask, _Sparse):
    tuning: _Tuning | None = None


class _DenseStudent(_Training):
    steps: Positive


class _DenseQuantize(_OnTask):
    tuning: _Tuning | None = None


class _Export(_Record):
    variants: dict[VariantName, _Exported]
    blocks: str = ""  # of zeros, rows x columns
    left_out: dict[str, str] = {}

    @model_validator(mode="after")
    def _same_metrics(self) -> Self:
        if len({frozenset(variant.ir) for variant in self.variants.values()}) > 1:
            raise ValueError("the variants have scores of different metrics")
        return self


class _OfType(_Record):
    f1: Fraction
    precision: Fraction
    recall: Fraction
    entities: Amount


class _Benchmark(_Record):
    dev_n: Positive
    metrics: Annotated[list[str], Field(min_length=1)]
    counts: dict[str, Positive] = {}
    note: str = ""
    rows_left_out: list[str] = []
    variants: Annotated[dict[VariantName, _Measured], Field(min_length=1)]
    by_type: dict[VariantName, dict[str, _OfType]] = {}
    sizes_reference: dict[str, Amount]
    accuracy_criterion: _Criterion | None = None
    zeros_criterion: _Criterion | None = None

    @model_validator(mode="after")
    def _all_metrics(self) -> Self:
        if not all(set(self.metrics) <= variant.accuracy.keys() for variant in self.variants.values()):
            raise ValueError("a variant has no score of a metric")
        return self


_METRICS: dict[str, type[_Record]] = {
    "teacher": _Training,
    "student": _Student,
    "task_teacher": _OnTask,
    "transfer": _Transfer,
    "quantize": _Quantize,
    "export": _Export,
    "benchmark": _Benchmark,
}
# The same for a dense model of fewer layers than its teacher.
_DENSE_METRICS: dict[str, type[_Record]] = _METRICS | {
    "student": _DenseStudent,
    "transfer": _OnTask,
    "quantize": _DenseQuantize,
}


class _Train(_Record):
    batch_size: Positive = 1
    gradient_accumulation_steps: Positive = 1


class _Holder(_Record):
    train: _Train | None = None


class _Section(_Holder):
    distillation: _Holder | None = None
    pruning: _Holder | None = None
    quantization: _Holder | None = None


class _Tuned(_Record):
    accuracy_criterion: AccuracyCriterion | None = None


class _Tunes(_Record):
    tuning: _Tuned | None = None


class _Data(_Record):
    kind: str = ""
    max_seq_length: Positive | None = None


class _Common(_Record):
    seconds: Amount
    history: list[Annotated[dict[str, Number], AfterValidator(_with_step)]]


def require_recorded(manifest: Manifest, folder: Path, stage: str, task: str | None, *, complete: bool) -> None:
    """Checks that a manifest belongs to its folder, and records what its stage records.

    Args:
        manifest: The manifest.
        folder: The stage folder that it was read from.
        stage: Name of the stage whose folder it is.
        task: Name of the task whose folder it is.
        complete: Whether every figure must be there that a report shows; else older versions may lack some.

    Raises:
        UserError: It does not; the message names the key.
    """
    where = str(folder / MANIFEST)
    if (manifest.stage, manifest.task) != (stage, task):
        found = f"{manifest.task}/{manifest.stage}" if manifest.task else manifest.stage
        raise UserError(f"this is the manifest of {found}", where=where, instead="the manifest of this folder")
    stored = manifest.model_dump(mode="json")  # a manifest that has just been made has tuples
    config, metrics = stored["config"], stored["metrics"]
    shallow = "kept_layers" in metrics
    schemas = _DENSE_METRICS if shallow and not {"sparsity", "per_matrix"} & metrics.keys() else _METRICS
    parts: list[tuple[str, type[_Record], Any]] = [
        ("metrics", schemas[stage], metrics),
        *([("metrics", _Depth, metrics)] if shallow else []),
        (f"config.{stage}", _Section, config.get(stage) or {}),
        ("config.quantize", _Tunes, config.get("quantize") or {}),
        ("config.transfer_tuning", _Tuned, config.get("transfer_tuning") or {}),
        ("config.task", _Data, config.get("task") or {}),
        ("config.corpus", _Data, config.get("corpus") or {}),
        ("", _Common, stored),
    ]
    for name, schema, values in parts:
        try:
            schema.model_validate(values)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False)
            wrong = [p for p in problems if complete or p["type"] != "missing"]
            if wrong:
                key = ".".join(map(str, (*filter(None, [name]), *wrong[0]["loc"])))
                raise UserError(
                    f"{key}: {wrong[0]['msg']}; the file is damaged, or of another version of the toolkit",
                    where=where,
                    instead="delete the folder; the next run reruns the stage",
                ) from None
