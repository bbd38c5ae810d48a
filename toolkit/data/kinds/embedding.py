"""Tokenised texts of an embedding task. Each text is an example of its own; rows of several texts are compared later.

So texts of any rows are batched by length, embedded once, and their cosines are taken afterwards. Loads no torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from typing_extensions import Self

from toolkit.data import metrics
from toolkit.data.kinds.examples import Tokenised
from toolkit.data.kinds.retrieval import Retrieval, ranked
from toolkit.data.labels import number_of
from toolkit.models.embedding.prompts import prompts_of_tokenizer
from toolkit.recipe import Kind, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from toolkit.data.task_rows import TaskRow

RANK_METRICS = ("ndcg@10", "mrr@10", "recall@100")  # of the queries of a retrieval set; not chosen by a recipe
_ROW, _DENSE = 0, 1  # columns of predictions: cosine of a row's texts; from there on, cosine to the dense embeddings


def _of_row(measure: Callable[[Any, Any], float]) -> Callable[[Any, Any], float]:
    return lambda truth, predicted: measure(truth, predicted[:, _ROW])


def _mean_of(column: int) -> Callable[[Any, Any], float]:
    return lambda _, predicted: float(predicted[:, column].mean())


@dataclass(frozen=True)
class Texts(Tokenised):
    """Texts of rows, one after the other. Item i: {input_ids, attention_mask, (token_type_ids)}, labels if scored.

    Attributes:
        texts: The texts of each row: one, two of a pair, or three of a triplet (anchor, positive, negative), each with
            the model's prompt before it.
        inputs: Name of a model input -> one list of ids per text, row by row.
        scores: Score of each pair, [rows] float32; None: rows have no score.
        together: Number of texts of a row, which a batch of the training does not separate.
        dense: The dense model's embeddings of the texts, [texts, size] float32; None: not computed.
        retrieval: Sets whose queries and documents follow the texts of the rows, set by set. A query is a row, too.
    """

    texts: list[tuple[str, ...]]
    inputs: dict[str, list[list[int]]]
    scores: np.ndarray | None
    together: int
    dense: np.ndarray | None = None
    retrieval: tuple[Retrieval, ...] = ()
    kind: ClassVar[Kind] = "embedding"
    metrics: ClassVar[dict[str, Callable[[Any, Any], float]]] = {
        "spearman_cosine": _of_row(metrics.spearman),
        "pearson_cosine": _of_row(metrics.pearson),
        "cosine_accuracy": _of_row(lambda _, gaps: float((gaps > 0).mean())),
        "dense_cosine": lambda _, predicted: float(np.nanmean(predicted[:, _DENSE:])),
        "dense_cosine_p1": lambda _, predicted: float(np.nanpercentile(predicted[:, _DENSE:], 1)),
    } | {name: _mean_of(number) for number, name in enumerate(RANK_METRICS)}

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = {name: ids[index] for name, ids in self.inputs.items()}
        if self.scores is None:
            return item
        row = index // self.together
        return item | {"labels": float(self.scores[row]) if row < len(self.scores) else 0.0}

    @property
    def groups(self) -> np.ndarray:
        """Numbers of the texts of each row, which a batch of the training does not separate: [rows, together]."""
        return np.arange(len(self.texts) * self.together).reshape(-1, self.together)

    @property
    def truth(self) -> np.ndarray:
        """The scores, [rows and queries]; zeros where there are none."""
        queries = sum(len(found.queries) for found in self.retrieval)
        own = np.zeros(len(self.texts), np.float32) if self.scores is None else self.scores
        return np.concatenate([own, np.zeros(queries, np.float32)])

    @classmethod
    def targets(cls, rows: "Sequence[TaskRow]", labels: Sequence[str]) -> np.ndarray | None:
        """Returns the scores of rows, [n] float32; None if they have none.

        Raises:
            UserError: A score is not a number; the message names the row.
        """
        if not rows or rows[0].label is None:
            return None
        return np.array([number_of(row.label, row.where) for row in rows], dtype=np.float32)

    @classmethod
    def encode(
        cls, rows: "Sequence[TaskRow]", labels: Sequence[str], section: Task, tokenizer: "PreTrainedTokenizerFast"
    ) -> Self:
        """Tokenises rows; texts longer than the section's `max_seq_length` are truncated."""
        texts = _prompted(rows, section, tokenizer)
        inputs = _tokenised(_flat(texts, ()), tokenizer, section.max_seq_length)
        return cls(texts, inputs, cls.targets(rows, labels), len(section.columns))

    @classmethod
    def inputs_of(
        cls, rows: "Sequence[TaskRow]", section: Task, tokenizer: "PreTrainedTokenizerFast"
    ) -> tuple[dict[str, list[list[int]]], Sequence[int]]:
        """Tokenises at least one row as `encode` does.

        Returns:
            Name of a model input -> one list of ids per text; number of the row of each text.
        """
        row_of = [number for number, row in enumerate(rows) for _ in row.texts]
        texts = _prompted(rows, section, tokenizer)
        return _tokenised(_flat(texts, ()), tokenizer, section.max_seq_length), row_of

    def encoded_by(self, tokenizer: "PreTrainedTokenizerFast") -> Self:
        """Returns the same texts, tokenised by another tokenizer and truncated at the same length."""
        if not len(self):
            return self
        return replace(self, inputs=_tokenised(_flat(self.texts, self.retrieval), tokenizer, int(self.lengths.max())))

    def followed_by(self, retrieval: Sequence[Retrieval], tokenizer: "PreTrainedTokenizerFast", longest: int) -> Self:
        """Returns these texts, followed by the queries and documents of some sets."""
        more = _tokenised(_flat((), retrieval), tokenizer, longest)
        inputs = {name: ids + more[name] for name, ids in self.inputs.items()}
        return replace(self, inputs=inputs, retrieval=tuple(retrieval))

    @staticmethod
    def token_counts(counts: Sequence[int], section: Task) -> list[int]:
        """Returns the number of tokens of a row, all of its texts together.

        Args:
            counts: Number of tokens of each of the row's texts, without special tokens.
            section: The task's section.
        """
        return [sum(min(section.max_seq_length, count + 2) for count in counts)]

    def tuning_metric(self, first: str) -> str:
        """Returns the metric that decides in tuning: the first one, or the cosine to the dense model without scores."""
        triplets = first == "cosine_accuracy" and self.together == 3
        return first if self.scores is not None or triplets else "dense_cosine"

    def predicted(self, logits: Sequence[np.ndarray]) -> np.ndarray:
        """Returns for each row the cosine of its pair, then each text's cosine to its dense embedding.

        Args:
            logits: Embeddings of the texts, [texts, size].

        Returns:
            [rows, 1 + texts of a row] float64. The first column is 0 for single texts; for triplets, how much closer
            the anchor is to the positive than to the negative. The others are NaN while `dense` is None. With
            `retrieval` there follow the queries of each set, with `RANK_METRICS`; missing columns are NaN.
        """
        count = len(self.texts) * self.together
        every = _unit(np.asarray(logits))
        own = every[:count]
        row = own.reshape(len(self.texts), self.together, -1)
        cosines = np.einsum("nh,nkh->nk", row[:, 0], row[:, 1:])
        first = np.zeros(len(row)) if self.together == 1 else cosines[:, 0]
        if self.together == 3:
            first = cosines[:, 0] - cosines[:, 1]
        if self.dense is None:
            dense = np.full((len(row), self.together), np.nan)
        else:
            dense = (own * _unit(self.dense[:count])).sum(axis=1).reshape(len(row), self.together)
        found = [np.column_stack([first, dense])]
        for one in self.retrieval:
            middle, end = count + len(one.queries), count + len(one.queries) + len(one.documents)
            found.append(ranked(every[count:middle], every[middle:end], one.relevant))
            count = end
        width = max(part.shape[1] for part in found)
        return np.concatenate(
            [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=np.nan) for part in found]
        )


def _unit(embeddings: np.ndarray) -> np.ndarray:
    """Returns embeddings of length 1, in float64; a zero stays zero."""
    wide = embeddings.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


def _prompted(rows: "Sequence[TaskRow]", section: Task, tokenizer: "PreTrainedTokenizerFast") -> list[tuple[str, ...]]:
    """Returns the texts of rows, each with the prompt of its column before it."""
    prompts = prompts_of_tokenizer(tokenizer, section).of_columns(section)
    return [tuple(prompt + text for prompt, text in zip(prompts, row.texts, strict=True)) for row in rows]


def _flat(rows: Sequence[tuple[str, ...]], retrieval: Sequence[Retrieval]) -> list[str]:
    """Returns the texts of rows, then queries and documents of each set."""
    return [text for part in (*rows, *(p for r in retrieval for p in (r.queries, r.documents))) for text in part]


def _tokenised(texts: Sequence[str], tokenizer: "PreTrainedTokenizerFast", longest: int) -> dict[str, list[list[int]]]:
    if not texts:
        return {name: [] for name in tokenizer.model_input_names}
    encoded = tokenizer(list(texts), truncation=True, max_length=longest)
    return {name: encoded[name] for name in tokenizer.model_input_names}
