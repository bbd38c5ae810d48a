"""Recipe section `tasks.<name>`: data files, columns, labels, metrics and the task's stage overrides."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from toolkit.recipe.benchmark import Benchmark
from toolkit.recipe.fields import Count, FileName, Length, Name, Number, Position, Section, wrong
from toolkit.recipe.kinds import multi_label, reranking
from toolkit.recipe.kinds import token_classification as tokens
from toolkit.recipe.kinds.embedding import Pooling, default_metrics, require_fitting_keys
from toolkit.recipe.presets import PRESETS, Preset
from toolkit.recipe.stages import Quantize, TrainOnly, Transfer

Kind = Literal[
    "classification",
    "regression",
    "question_answering",
    "embedding",
    "multi_label",
    "reranking",
    "token_classification",
]
Metric = Literal[
    "accuracy",
    "f1",
    "matthews_correlation",
    "pearson",
    "spearman",
    "exact_match",
    "spearman_cosine",
    "pearson_cosine",
    "cosine_accuracy",
    "dense_cosine",
    "dense_cosine_p1",
    "f1_micro",
    "f1_macro",
    "average_precision",
    "ndcg@10",
    "mrr@10",
    "precision",
    "recall",
]


@dataclass(frozen=True)
class KindRules:
    """Rules that a recipe's task of one kind must follow.

    Attributes:
        metrics: Supported metrics; the first one is the default.
        has_classes: Whether the label is the name or number of a class.
        several_classes: Whether a row has any number of classes, none included.
        scalar_label: Whether the label is a string or a number, not a list or an object.
        columns: Names of the text columns if the kind needs a fixed number of them; empty: one to `most_columns`.
        cuts_windows: Whether long texts are split into windows, as set in `windows`.
        per_token: Whether logits are per token ([C, length]): their number varies with the text, so that they cannot be
            compared one by one.
        dense_teaches: Whether the dense model solves the task as it is: it is the teacher without being fine-tuned, and
            what a compressed model is compared with.
        most_columns: Largest number of text columns.
        per_query: Whether rows are candidates of a query, which metrics rank and which are never separated.
        tagged: Whether the classes are the tags of words, and a row has many of them.
    """

    metrics: tuple[Metric, ...]
    has_classes: bool = False
    several_classes: bool = False
    scalar_label: bool = True
    columns: tuple[str, ...] = ()
    cuts_windows: bool = False
    per_token: bool = False
    dense_teaches: bool = False
    most_columns: int = 2
    per_query: bool = False
    tagged: bool = False

    @property
    def takes_unlabelled(self) -> bool:
        """Whether a distillation can add examples without labels to those of the train split."""
        return not (self.per_token or self.per_query or self.dense_teaches)


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
    "embedding": KindRules(
        ("spearman_cosine", "pearson_cosine", "cosine_accuracy", "dense_cosine", "dense_cosine_p1"),
        dense_teaches=True,
        most_columns=3,
    ),
    "multi_label": KindRules(
        ("f1_micro", "f1_macro", "average_precision"), has_classes=True, several_classes=True, scalar_label=False
    ),
    "reranking": KindRules(("ndcg@10", "mrr@10"), most_columns=reranking.MOST_COLUMNS, per_query=True),
    "token_classification": KindRules(
        ("f1", "precision", "recall"),
        has_classes=True,
        scalar_label=False,
        cuts_windows=True,
        per_token=True,
        most_columns=1,
        tagged=True,
    ),
}
_KIND: Kind = "classification"  # of a task that names none
OWN_STAGES = ("task_teacher", "transfer", "quantize", "benchmark")


class HoldOut(Section):
    """Group split of one file into train and dev by the values of a column; no group is in both."""

    column: str = Field(description="column that defines the groups, e.g. the film of a review")
    fraction: Number = Field(0.1, gt=0, le=0.5, description="fraction of groups in dev, rounded to 1/2, 1/3, 1/4, …")
    fold: Position = Field(0, description="index of the part that is used as dev, from 0")

    @model_validator(mode="after")
    def _fold_exists(self) -> "HoldOut":
        parts = round(1 / self.fraction)
        if self.fold >= parts:
            raise wrong(f"there are only {parts} folds, numbered from 0", "fold", instead=f"at most {parts - 1}")
        return self


class AnswerWindows(Section):
    """Windows for long contexts, and the search for answers over them; token classification has `stride` alone."""

    stride: Count = Field(
        128, description="overlap of neighbouring windows, in tokens of the text; token classification: 16 by default"
    )
    max_question_length: Count = Field(64, description="maximum tokens of a question; longer ones are truncated")
    max_answer_length: Count = Field(30, description="maximum tokens of a predicted answer")
    n_best: Count = Field(20, description="number of best start and end positions to combine per window")


class Task(Section):
    """A task: its kind, its data files and their columns, and the stages that differ from the recipe's."""

    preset: Preset | None = Field(
        None, description="public task; sets files (from the hub), columns, labels and metrics that are not given here"
    )
    kind: Kind = Field(
        _KIND,
        description="classification, regression, extractive question answering, embedding (sentence embeddings), "
        "multi_label (any number of classes per row), reranking (scores of pairs of a query and a passage), or "
        "token_classification (named entities)",
    )
    train: FileName = Field(
        min_length=1,
        description="file (TSV, CSV, JSON lines, Parquet, SQuAD's JSON, CoNLL; optionally .bz2/.gz/.xz/.zst), "
        "package:<distribution>/<file>, or hub:<dataset>[@revision]:<config>:<split>",
    )
    more_train: tuple[FileName, ...] = Field(
        (),
        description="further files of the training split; `train` may also be a list of files, or a pattern like *.csv",
    )
    dev: FileName | None = Field(None, description="file of the evaluation split; alternative to hold_out")
    more_dev: dict[Name, FileName] = Field(
        {}, description="additional evaluation splits, by name, e.g. {mismatched: dev_mismatched.tsv}"
    )
    hold_out: HoldOut | None = None
    rows: dict[str, tuple[str, ...]] = Field({}, description="column -> values; only rows with these values are used")
    drop_empty: bool = Field(False, description="skip rows with an empty text; otherwise they are an error")
    drop_unanswerable: bool = Field(
        False,
        description="question answering: skip questions without an answer (SQuAD 2.0); otherwise they are an error",
    )
    columns: tuple[str, ...] = Field(
        ("sentence",),
        min_length=1,
        max_length=reranking.MOST_COLUMNS,
        description="text column, the two columns of a sentence pair, or the columns of question and context; "
        "embedding: texts, pairs (anchor, positive) or triplets (anchor, positive, negative); reranking: query and "
        "passage, or without label query, positives and any number of columns of negatives, as texts or lists; token "
        "classification: tokens or text, in a CoNLL file 1 for the first column",
    )
    label: str | None = Field(
        "label",
        description="column of the class, number or answers; embedding: of a pair's score, if the pairs have one; "
        "multi_label: of a list of classes, or of their names in a text; reranking: of the relevance; token "
        "classification: of tags or entities, by default `tags`, in a CoNLL file the last column",
    )
    scheme: tokens.Scheme | None = Field(
        None, description="token classification: scheme of the tags; default: as each file's tags show"
    )
    label_columns: tuple[str, ...] = Field(
        (), description="multi_label: one column (0 or 1) per class, in place of `label`; its name is that of the class"
    )
    separator: str = Field("|", min_length=1, description="multi_label: what separates the classes in a text")
    threshold: Number = Field(0.5, gt=0, lt=1, description="multi_label: probability from which a class is predicted")
    ranking: reranking.Ranking = reranking.Ranking()
    dev_columns: tuple[str, ...] = Field(
        (), max_length=3, description="embedding: text columns of dev and more_dev, if they are not `columns`"
    )
    dev_label: str | None = Field(None, description="embedding: column of the scores of dev and more_dev")
    retrieval: dict[Name, FileName] = Field(
        {},
        description="embedding: additional evaluation sets in BEIR's layout, name -> <folder>/qrels/<split>.tsv; "
        "measured by nDCG@10, MRR@10 and recall@100",
    )
    pooling: Pooling | None = Field(
        None,
        description="embedding: mean of the tokens' states, or state of the first one (cls); default: as the model's "
        "own sentence-transformers folder says, else mean",
    )
    normalize: bool | None = Field(
        None, description="embedding: whether embeddings have length 1; default: as the model's folder says, else true"
    )
    prompts: dict[str, str] | None = Field(
        None,
        description="embedding: texts before others, by name: before queries `query`, before documents `document` or "
        "`passage`; default: those of the model's own sentence-transformers folder; {} for none",
    )
    default_prompt: str | None = Field(
        None, description="embedding: name of the prompt of texts that are neither queries nor documents"
    )
    labels: tuple[str, ...] = Field(
        (),
        description="class names in label order; empty: as found in the training file; token classification: types of "
        "entities, or tags in the order of their numbers, e.g. [O, B-PER, I-PER]",
    )
    metrics: tuple[Metric, ...] = Field(
        ("accuracy",), min_length=1, description="metrics measured on dev; the first one is used for tuning"
    )
    max_seq_length: Length = Field(
        128, description="maximum tokens per example; longer texts are truncated, contexts split into windows"
    )
    windows: AnswerWindows = AnswerWindows()
    tuning_examples: Position = Field(
        1000, description="training examples, at most a tenth, held out of training in all stages for tuning"
    )
    note: str = Field("", description="remark shown with every result, e.g. 'reduced training data'")
    ready: dict[Literal["task_teacher", "transfer"], FileName] = Field(
        {}, description="checkpoints used instead of running a stage"
    )
    task_teacher: TrainOnly | None = Field(None, description="task-specific settings, merged over the recipe's section")
    transfer: Transfer | None = Field(None, description="task-specific settings, merged over the recipe's section")
    quantize: Quantize | None = Field(None, description="task-specific settings, merged over the recipe's section")
    benchmark: Benchmark | None = Field(None, description="task-specific settings, merged over the recipe's section")

    @property
    def least_length(self) -> int:
        """Number of tokens that `max_seq_length` must exceed for windows to advance; 0 if texts are not split."""
        if not KINDS[self.kind].cuts_windows:
            return 0
        if KINDS[self.kind].tagged:
            return self.windows.stride + 2  # [CLS], [SEP]
        return self.windows.max_question_length + self.windows.stride + 3  # [CLS], two [SEP]

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Fills missing keys from the preset, and `metrics` with the kind's default."""
        if not isinstance(values, dict):
            return values
        preset = values.get("preset")
        known = dict(PRESETS[preset]) if isinstance(preset, str) and preset in PRESETS else {}
        if "dev" in values or "hold_out" in values:  # the preset's other splits do not belong to another dev split
            for key in ("dev", "more_dev", "hold_out"):
                known.pop(key, None)
        filled = known | {k: v for k, v in values.items() if v is not None}
        kind = filled.get("kind")
        if (kind or _KIND) != known.get("kind", _KIND) and "metrics" not in values:
            filled.pop("metrics", None)  # the preset's are those of another kind
        if kind == "embedding":
            filled.setdefault("label", None)
            filled.setdefault("metrics", default_metrics(filled))
        if kind == "multi_label":
            multi_label.fill_in(filled)
        if kind == "reranking":
            reranking.fill_in(filled)
        if kind == "token_classification":
            filled = tokens.with_defaults(filled)
        files, more = filled.get("train"), filled.get("more_train", [])
        if isinstance(files, list | tuple) and files and isinstance(more, list | tuple):
            filled |= {"train": files[0], "more_train": [*files[1:], *more]}
        if "metrics" not in filled and isinstance(kind, str) and kind in KINDS:
            filled["metrics"] = KINDS[kind].metrics[:1]
        return filled

    @model_validator(mode="after")
    def _makes_sense(self) -> "Task":
        if (self.dev is None) == (self.hold_out is None):
            raise wrong("needs exactly one of `dev` and `hold_out`", instead="dev: <file>")
        if self.label in self.columns:
            raise wrong(f"{self.label!r} is the label column and cannot be a text column", "columns")
        least = 1 if KINDS[self.kind].tagged else 2  # a single type of entity has three tags
        if 0 < len(self.labels) < least or len(set(self.labels)) < len(self.labels):
            raise wrong("must be two or more distinct names", "labels", instead="e.g. [negative, positive]")
        return self

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "Task":
        rules, kind = KINDS[self.kind], self.kind.replace("_", " ")
        for number, metric in enumerate(self.metrics):
            if metric not in rules.metrics:
                raise wrong(
                    f"{metric} is not supported for {kind}",
                    *("metrics", number),
                    instead=" or ".join(rules.metrics),
                )
        if self.labels and not rules.has_classes:
            raise wrong(f"{_a(kind)} task has no classes", "labels", instead="remove the key")
        if len(self.columns) > rules.most_columns:
            raise wrong(f"must be at most {rules.most_columns} for {kind}", "columns", rules.most_columns)
        require_fitting_keys(self)
        multi_label.require_fitting_keys(self)
        reranking.require_fitting_keys(self)
        tokens.require_fitting_keys(self)
        if rules.columns and len(self.columns) != len(rules.columns):
            what = f"needs {len(rules.columns)} columns, in this order"
            raise wrong(what, "columns", instead=f"[{', '.join(rules.columns)}]")
        if not rules.cuts_windows and self.windows != AnswerWindows():
            what = f"has no effect: texts of {_a(kind)} task are not split"
            raise wrong(what, "windows", *sorted(self.windows.model_fields_set)[:1], instead="remove the key")
        if not rules.cuts_windows and self.drop_unanswerable:
            raise wrong(f"has no effect on {_a(kind)} task", "drop_unanswerable", instead="remove the key")
        if rules.columns and self.max_seq_length <= self.least_length:
            raise wrong(
                f"too short for a question of {self.windows.max_question_length} tokens and an overlap of "
                f"{self.windows.stride}: windows would not advance",
                "max_seq_length",
                instead=f"more than {self.least_length}, or a smaller windows.stride",
            )
        return self

    @property
    def evaluated(self) -> "Task":
        """The task as the rows of its evaluation splits have it: with their columns and their label."""
        if not self.dev_columns and self.dev_label is None:
            return self
        return self.model_copy(update={"columns": self.dev_columns or self.columns, "label": self.dev_label})

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the model's classes as far as the recipe has them: its labels, or tags of IOB2 made of them."""
        return tokens.tags_of(tokens.types_of(self.labels)) if self.labels and KINDS[self.kind].tagged else self.labels

    @property
    def has_targets(self) -> bool:
        """Whether the training rows say what is right: a label, or which texts of a row belong together."""
        return self.label is not None or bool(self.label_columns) or len(self.columns) > 1


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


# Keys of a task that its training texts depend on.
_TEXT_FIELDS = {
    "kind",
    "columns",
    "label",
    "rows",
    "drop_empty",
    "drop_unanswerable",
    "hold_out",
    "tuning_examples",
    "ranking",
    "prompts",
    "default_prompt",
}
# Keys that are left out of cache keys while they have their default, so that the keys of older runs stay valid.
_ADDED: dict[str, Any] = {
    "drop_unanswerable": False,
    "dev_columns": [],
    "dev_label": None,
    "retrieval": {},
    "pooling": None,
    "normalize": None,
    "prompts": None,
    "default_prompt": None,
    "label_columns": [],
    "separator": "|",
    "threshold": 0.5,
    "ranking": reranking.Ranking().model_dump(mode="json"),
    "scheme": None,
}


def settings_for_keys(task: Task, *, texts_only: bool = False, exclude: set[str] | None = None) -> dict[str, Any]:
    """Returns the settings of a task that enter cache keys, as JSON values.

    Args:
        task: The task.
        texts_only: Whether to return only what the training texts depend on.
        exclude: Keys to leave out.
    """
    values = task.model_dump(mode="json", include=_TEXT_FIELDS if texts_only else None, exclude=exclude)
    if texts_only:  # of the ranking, only the number of candidates chooses texts
        values["ranking"] = _ADDED["ranking"] | {"bm25": task.ranking.bm25}
    return {key: value for key, value in values.items() if key not in _ADDED or value != _ADDED[key]}
