"""The recipe's `tasks.<name>` section: where a task's rows come from, what its columns mean, what is measured."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from toolkit.recipe.benchmark import Benchmark
from toolkit.recipe.fields import Count, Length, Name, Number, Position, Section, wrong
from toolkit.recipe.presets import PRESETS, Preset
from toolkit.recipe.stages import Quantize, TrainOnly, Transfer

Kind = Literal["classification", "regression", "question_answering"]
Metric = Literal["accuracy", "f1", "matthews_correlation", "pearson", "spearman", "exact_match"]


@dataclass(frozen=True)
class KindRules:
    """What a recipe may say about a task of one kind.

    Attributes:
        metrics: Metrics that can be measured; the first one is the default.
        has_classes: The label is the name or number of a class.
        scalar_label: The label is a text or a number, not a list or an object.
        columns: Names of the text columns if the kind needs a fixed number of them; empty: one column or two.
        cuts_windows: Long texts are cut into windows, by the section `windows`.
        per_token: There are as many logits as a text has tokens, so that they cannot be compared one by one.
    """

    metrics: tuple[Metric, ...]
    has_classes: bool = False
    scalar_label: bool = True
    columns: tuple[str, ...] = ()
    cuts_windows: bool = False
    per_token: bool = False


KINDS: dict[Kind, KindRules] = {
    "classification": KindRules(("accuracy", "f1", "matthews_correlation"), has_classes=True),
    "regression": KindRules(("pearson", "spearman")),
    "question_answering": KindRules(
        ("f1", "exact_match"),
        scalar_label=False,
        columns=("question", "context"),
        cuts_windows=True,
        per_token=True,
    ),
}
OWN_STAGES = ("task_teacher", "transfer", "quantize", "benchmark")


class HoldOut(Section):
    """Splits one file into train and dev by the values of a column, so that no group is in both."""

    column: str = Field(description="e.g. the film a review is about")
    fraction: Number = Field(0.1, gt=0, le=0.5, description="share of the groups in dev, rounded to 1/2, 1/3, 1/4, …")
    fold: Position = Field(0, description="which of these parts is dev")

    @model_validator(mode="after")
    def _fold_exists(self) -> "HoldOut":
        parts = round(1 / self.fraction)
        if self.fold >= parts:
            raise wrong(f"there are only {parts} parts, numbered from 0", "fold", instead=f"at most {parts - 1}")
        return self


class AnswerWindows(Section):
    """How long contexts are cut for question answering, and how an answer is put together from the pieces."""

    stride: Count = Field(128, description="tokens of context that two neighbouring windows share")
    max_question_length: Count = Field(64, description="tokens; longer questions are cut")
    max_answer_length: Count = Field(30, description="tokens; no longer answer is given")
    n_best: Count = Field(20, description="starts, and ends, that are paired in each window")


class Task(Section):
    """A task over one or two text columns, or questions about texts. `tasks.py` turns it into data and metrics."""

    preset: Preset | None = Field(
        None, description="a public task: fills in files (from the hub), columns, labels and metrics not said here"
    )
    kind: Kind = Field("classification", description="classes, a number (regression), or answers cut out of a text")
    train: str = Field(
        min_length=1,
        description="file (TSV, CSV, JSON lines, Parquet, SQuAD's JSON; .bz2/.gz/.xz/.zst too), "
        "package:<distribution>/<file>, or hub:<dataset>[@revision]:<config>:<split>",
    )
    dev: str | None = Field(None, description="file of the split that is measured; or use hold_out")
    more_dev: dict[Name, str] = Field(
        {}, description="further splits that are measured, by name, e.g. {mismatched: dev_mismatched.tsv}"
    )
    hold_out: HoldOut | None = None
    rows: dict[str, tuple[str, ...]] = Field({}, description="keep only rows whose column has one of these values")
    drop_empty: bool = Field(False, description="leave out rows with an empty text; else such a row is an error")
    columns: tuple[str, ...] = Field(
        ("sentence",),
        min_length=1,
        max_length=2,
        description="the text column, the two of a pair of sentences, or those of question and context",
    )
    label: str = Field("label", description="column of the label, number or answers")
    labels: tuple[str, ...] = Field((), description="label names in the order of the classes; empty: as found in train")
    metrics: tuple[Metric, ...] = Field(
        ("accuracy",), min_length=1, description="what is measured on dev; the first one counts for tuning"
    )
    max_seq_length: Length = Field(128, description="tokens per example; longer ones are cut (contexts: into windows)")
    windows: AnswerWindows = AnswerWindows()
    tuning_examples: Position = Field(
        1000, description="training examples, at most a tenth, that no stage trains on: tuning decides by them"
    )
    note: str = Field("", description="said beside every result, e.g. 'reduced training data'")
    ready: dict[Literal["task_teacher", "transfer"], str] = Field({}, description="checkpoints used in place of stages")
    task_teacher: TrainOnly | None = Field(None, description="this task's own; laid over the recipe's, key by key")
    transfer: Transfer | None = Field(None, description="this task's own; laid over the recipe's, key by key")
    quantize: Quantize | None = Field(None, description="this task's own; laid over the recipe's, key by key")
    benchmark: Benchmark | None = Field(None, description="this task's own; laid over the recipe's, key by key")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """What a preset says of a public task, and the kind's first metric, where the recipe says nothing."""
        if not isinstance(values, dict):
            return values
        preset = values.get("preset")
        known = dict(PRESETS[preset]) if isinstance(preset, str) and preset in PRESETS else {}
        if "dev" in values or "hold_out" in values:  # the public task's splits are not those of another file
            known.pop("dev", None)
            known.pop("more_dev", None)
        filled = known | {k: v for k, v in values.items() if v is not None}
        if "metrics" not in filled and filled.get("kind") in KINDS:
            filled["metrics"] = KINDS[filled["kind"]].metrics[:1]
        return filled

    @model_validator(mode="after")
    def _makes_sense(self) -> "Task":
        if (self.dev is None) == (self.hold_out is None):
            raise wrong("needs exactly one of `dev` and `hold_out`", instead="dev: <file>")
        if self.label in self.columns:
            raise wrong(f"{self.label!r} is the label: as a text it would give the answer away", "columns")
        if len(self.labels) == 1 or len(set(self.labels)) < len(self.labels):
            raise wrong("must be two or more different names", "labels", instead="e.g. [negative, positive]")
        return self

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "Task":
        rules, kind = KINDS[self.kind], self.kind.replace("_", " ")
        for number, metric in enumerate(self.metrics):
            if metric not in rules.metrics:
                raise wrong(
                    f"{metric} is not measured of {kind}",
                    *("metrics", number),
                    instead=" or ".join(rules.metrics),
                )
        if self.labels and not rules.has_classes:
            raise wrong(f"a task of {kind} has no classes", "labels", instead="no labels")
        if rules.columns and len(self.columns) != len(rules.columns):
            what = f"needs {len(rules.columns)} columns, in this order"
            raise wrong(what, "columns", instead=f"[{', '.join(rules.columns)}]")
        least = self.windows.max_question_length + self.windows.stride + 3  # [CLS], two [SEP]
        if rules.cuts_windows and self.max_seq_length <= least:
            raise wrong(
                f"a question of {self.windows.max_question_length} tokens and an overlap of {self.windows.stride} "
                "leave nothing new for a window",
                "max_seq_length",
                instead=f"more than {least}, or a smaller windows.stride",
            )
        return self


# Keys of a task that its training texts depend on; how it is learnt, quantized, measured or called is none of them.
TEXT_FIELDS = {"kind", "columns", "label", "rows", "drop_empty", "hold_out", "tuning_examples"}
