"""Facts of an exported variant for its model card: what it is, what it was made from, and code that loads it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from toolkit.core.artifacts import Manifest
from toolkit.core.errors import UserError
from toolkit.models.architectures import is_in_layer, layer_count
from toolkit.models.checkpoint import MIN_SPARSITY
from toolkit.models.config import read_config
from toolkit.models.embedding.prompts import stored_prompts
from toolkit.models.included_models import PREFIX, hub_id
from toolkit.models.sources import LICENSE_KEYS, is_hub_model
from toolkit.recipe import VARIANTS, Kind, Recipe, Task
from toolkit.reporting.audit import made_from
from toolkit.reporting.formatting import percent
from toolkit.reporting.manifests import stage_of


@dataclass(frozen=True)
class _Use:
    """How a model of a kind of task is named and loaded.

    Attributes:
        name: What it is, as the beginning of a sentence.
        pipeline: The hub's name of the task, `pipeline_tag`.
        ov_class: Class of optimum-intel.
        library: Class of sentence-transformers that opens the folder, too; empty: none.
    """

    name: str
    pipeline: str
    ov_class: str = "OVModelForSequenceClassification"
    library: str = ""


_USES: dict[Kind, _Use] = {
    "classification": _Use("Text classifier", "text-classification"),
    "multi_label": _Use("Text classifier with any number of classes per text", "text-classification"),
    "regression": _Use("Regression model of texts", "text-classification"),
    "question_answering": _Use(
        "Extractive question answering model", "question-answering", "OVModelForQuestionAnswering"
    ),
    "token_classification": _Use(
        "Token classifier (named entities)", "token-classification", "OVModelForTokenClassification"
    ),
    "embedding": _Use("Sentence embedding model", "sentence-similarity", library="SentenceTransformer"),
    "reranking": _Use("Reranker (cross-encoder)", "text-ranking", library="CrossEncoder"),
}
_TYPES = {"f32": "FP32", "f16": "FP16", "i8": "INT8", "u8": "INT8"}
_NAMED = ("package:", PREFIX)  # sources that are no paths
_PRECISION = '{"INFERENCE_PRECISION_HINT": "f32"}'


@dataclass(frozen=True)
class Facts:
    """An exported variant of a task.

    Attributes:
        run: Name of the run.
        task: Name of the task.
        variant: Name of the variant.
        section: The task's section of the recipe.
        zeros: Fraction of zeros in the encoder's pruned matrices, as stored in the IR; None: it is dense.
        blocks: Blocks of the zeros, rows x columns; `1x1`: single ones; empty: not recorded.
        weights: How many of the encoder's matrices are stored in which type, and how many get 8-bit activations.
        layers: Number of layers in a forward pass; empty: not known.
        source: Source of the model that it was compressed from, as the recipe has it, without a local path.
        base_model: Its id on the hub; empty: it has none, or none is known.
        prompts: Whether the folder of an embedding model has prompts, of queries and documents.
        license: What that model states about its license, under the hub's keys; empty: nothing, or not known.
    """

    run: str
    task: str
    variant: str
    section: Task
    zeros: float | None
    blocks: str
    weights: str
    layers: str
    source: str
    base_model: str
    prompts: bool
    license: dict[str, str]

    @property
    def engine(self) -> bool:
        """Whether the IR needs the sparse kernels."""
        return VARIANTS[self.variant].engine

    @property
    def kind(self) -> str:
        """What the model is, as the beginning of a sentence."""
        return _USES[self.section.kind].name

    @property
    def pipeline(self) -> str:
        """The hub's name of the task."""
        return _USES[self.section.kind].pipeline

    @property
    def library(self) -> str:
        """The hub's name of the library that loads the folder."""
        if self.engine:
            return "pruneofa"
        return "sentence-transformers" if _USES[self.section.kind].library else "optimum-intel"

    @property
    def tags(self) -> list[str]:
        """Tags for the hub."""
        found = ["openvino", "pruneofa"]
        found += ["sparse"] if self.zeros is not None else []
        found += ["int8"] if VARIANTS[self.variant].int8 else []
        found += ["sentence-transformers"] if self.library == "sentence-transformers" else []
        return [*found, "cross-encoder"] if _USES[self.section.kind].library == "CrossEncoder" else found

    @property
    def sparsity(self) -> str:
        """The zeros in words; empty if there are none."""
        if self.zeros is None:
            return ""
        pattern = {"": "", "1x1": ", single ones"}.get(self.blocks, f", in blocks of {self.blocks.replace('x', '×')}")
        return f"{percent(self.zeros)} of the weights in the encoder's pruned matrices{pattern}"

    def code(self) -> str:
        """Returns Python code that loads the folder with this toolkit, and runs it."""
        use, load = _USES[self.section.kind], ["import pruneofa"]
        if use.library == "SentenceTransformer":
            return self._script(load, "model = pruneofa.load(folder)", self._encode())
        return self._script([*load, _TOKENIZER], "model = pruneofa.load(folder)", self._forward())

    def stock_code(self) -> str:
        """Returns the same with the library alone; empty if the IR needs the sparse kernels."""
        use = _USES[self.section.kind]
        if self.engine:
            return ""
        if use.library:
            options = f'backend="openvino", device="cpu", model_kwargs={{"ov_config": {_PRECISION}}}'
            run = self._encode() if use.library == "SentenceTransformer" else _PREDICT
            load = f"model = {use.library}(folder, {options})"
            return self._script([f"from sentence_transformers import {use.library}"], load, run)
        load = f"model = {use.ov_class}.from_pretrained(folder, ov_config={_PRECISION})"
        return self._script([f"from optimum.intel import {use.ov_class}", _TOKENIZER], load, self._forward())

    def _script(self, imports: list[str], load: str, run: list[str]) -> str:
        return "\n".join([*imports, "", f'folder = "{self.variant}"', load, *run])

    def _encode(self) -> list[str]:
        return _ENCODE_PAIR if self.prompts else _ENCODE

    def _forward(self) -> list[str]:
        """Returns the lines that tokenise an example and compute what the model predicts."""
        kind, section = self.section.kind, self.section
        texts, cut = '"a text"', "truncation=True"
        if kind == "question_answering":
            texts, cut = '"a question", "the text with its answer"', 'truncation="only_second"'
        elif kind == "reranking":
            texts = '["a query"], ["a passage"]'
        elif len(section.columns) > 1:
            texts = '"a text", "another text"'
        scaled = ".sigmoid()" if kind == "reranking" and section.ranking.loss == "bce" else ""  # as CrossEncoder does
        predict = {
            "classification": ["label = model.config.id2label[int(output.logits.argmax())]"],
            "multi_label": [
                "probabilities = output.logits.sigmoid()[0]",
                f"labels = [model.config.id2label[n] for n, p in enumerate(probabilities) if p >= {section.threshold}]",
            ],
            "token_classification": [
                "labels = [model.config.id2label[int(n)] for n in output.logits[0].argmax(-1)]  # of each token"
            ],
            "question_answering": ["start, end = output.start_logits, output.end_logits  # of each token"],
        }.get(kind, [f"score = float(output.logits{scaled})"])
        return [
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            f'inputs = tokenizer({texts}, {cut}, max_length={section.max_seq_length}, return_tensors="pt")',
            "output = model(**inputs)",
            *predict,
        ]


_TOKENIZER = "from transformers import AutoTokenizer"
_ENCODE = ['embeddings = model.encode(["a text", "another text"])']
_ENCODE_PAIR = ['queries = model.encode_query(["a query"])', 'documents = model.encode_document(["a text"])']
_PREDICT = ['scores = model.predict([("a query", "a passage")])']


def facts_of(rest: Sequence[Manifest], export: Manifest, variant: str, recipe: Recipe, folder: Path) -> Facts:
    """Returns the facts of an exported variant.

    Args:
        rest: The manifests that the variant rests on.
        export: That of the export.
        variant: Name of the variant.
        recipe: Recipe of the run.
        folder: IR folder of the variant.
    """
    task = export.task or ""
    matmuls = [m for m in export.metrics["variants"][variant]["matmuls"] if is_in_layer(m["module"])]
    sparse = VARIANTS[variant].sparse  # rounding to 8 bits makes zeros in a dense model, too
    pruned = [m for m in matmuls if sparse and m["zero_fraction"] > MIN_SPARSITY]
    size = sum(_size(m) for m in pruned)
    kept = next((m.metrics for m in _makers(rest, task) if m.metrics.get("kept_layers")), None)
    of_student = made_from(export, variant) != "task_teacher"
    source = source_of(recipe, task, of_student=of_student)
    named = is_hub_model(source)
    return Facts(
        run=recipe.name,
        task=task,
        variant=variant,
        section=recipe.tasks[task],
        zeros=sum(m["zero_fraction"] * _size(m) for m in pruned) / size if size else None,
        blocks=export.metrics.get("blocks", "") if sparse else "",
        weights=_weights(matmuls),
        layers=_layers(folder, kept if of_student else None),
        source=source if named or source.startswith(_NAMED) else PurePath(source).name,
        base_model=source.partition("@")[0] if named else hub_id(source),
        prompts=recipe.tasks[task].kind == "embedding" and _has_prompts(folder),
        # What was recorded is that of the recipe's model, not of a ready one.
        license=_license(export.data.get("base model")) if source == recipe.model.source else {},
    )


def source_of(recipe: Recipe, task: str, *, of_student: bool) -> str:
    """Returns the source of the model that a task's variants were made from: the latest one that is ready.

    Args:
        recipe: The recipe.
        task: Name of the task.
        of_student: Whether the variant was made from the student; else from the task teacher.
    """
    own, shared = recipe.tasks[task].ready, recipe.ready
    found = {str(name): source for ready in (own, shared) for name, source in ready.items()}  # their stages differ
    names = ("quantize", "transfer", "student", "teacher") if of_student else ("task_teacher", "teacher")
    return next((found[name] for name in names if name in found), recipe.model.source)


def _has_prompts(folder: Path) -> bool:
    try:
        return bool(stored_prompts(folder))
    except UserError:  # the file is damaged, which whoever loads the folder is told
        return False


def _license(stated: Any) -> dict[str, str]:
    known = {k: v for k, v in stated.items() if k in LICENSE_KEYS} if isinstance(stated, dict) else {}
    return known if "license" in known and all(isinstance(v, str) for v in known.values()) else {}


def _layers(folder: Path, kept: dict[str, Any] | None) -> str:
    """Describes the number of layers; that of a student with fewer than its teacher, with both.

    Args:
        folder: IR folder.
        kept: Metrics of a stage that left out layers; None: none did.
    """
    if kept is not None:
        return f"{len(kept['kept_layers'])} of {kept['layers_before']}"
    try:
        return str(layer_count(read_config(folder)))
    except (UserError, LookupError):  # the IR loads without the file
        return ""


def _makers(run: Sequence[Manifest], task: str) -> list[Manifest]:
    return [m for m in (stage_of(run, "transfer", task), stage_of(run, "student")) if m is not None]


def _size(matmul: dict[str, Any]) -> int:
    return math.prod(matmul["shape"])


def _weights(matmuls: Sequence[dict[str, Any]]) -> str:
    """Describes the types of the encoder's matrices, and how many multiply 8-bit activations."""
    if not matmuls:
        return ""
    types = Counter(_TYPES.get(m["stored_type"], m["stored_type"]) for m in matmuls)
    rounded = sum(bool(m.get("input_fake_quantized")) for m in matmuls)
    stored = ", ".join(f"{count} in {name}" for name, count in types.items())
    return f"{stored}; {rounded} multiply 8-bit activations" if rounded else f"{stored}; activations in FP32"
