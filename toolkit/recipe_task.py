"""The recipe's `tasks.<name>` section: where a task's rows come from, what its columns mean, what is measured."""

from typing import Literal

from pydantic import Field, model_validator

from toolkit.recipe_base import Count, Number, Position, Section, wrong


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


class Task(Section):
    """A classification task over one or two text columns. `tasks.py` turns it into data, head and metrics."""

    train: str = Field(
        min_length=1, description="file (TSV, CSV, JSON lines; .bz2/.gz/.xz too) or package:<distribution>/<file>"
    )
    dev: str | None = Field(None, description="file of the split that is measured; or use hold_out")
    hold_out: HoldOut | None = None
    rows: dict[str, tuple[str, ...]] = Field({}, description="keep only rows whose column has one of these values")
    columns: tuple[str, ...] = Field(
        ("sentence",), min_length=1, max_length=2, description="the text column, or the two of a pair of sentences"
    )
    label: str = Field("label", description="column of the label")
    labels: tuple[str, ...] = Field((), description="label names in the order of the classes; empty: as found in train")
    metrics: tuple[Literal["accuracy", "f1"], ...] = Field(
        ("accuracy",), min_length=1, description="what is measured on dev; the first one counts for tuning"
    )
    max_seq_length: Count = Field(128, description="tokens per example; longer ones are cut")
    tuning_examples: Position = Field(
        1000, description="training examples, at most a tenth, that no stage trains on: tuning decides by them"
    )
    note: str = Field("", description="said beside every result, e.g. 'reduced training data'")
    ready: dict[Literal["task_teacher", "transfer"], str] = Field({}, description="checkpoints used in place of stages")

    @model_validator(mode="after")
    def _makes_sense(self) -> "Task":
        if (self.dev is None) == (self.hold_out is None):
            raise wrong("needs exactly one of `dev` and `hold_out`", instead="dev: <file>")
        if self.label in self.columns:
            raise wrong(f"{self.label!r} is the label: as a text it would give the answer away", "columns")
        if len(self.labels) == 1 or len(set(self.labels)) < len(self.labels):
            raise wrong("must be two or more different names", "labels", instead="e.g. [negative, positive]")
        return self
