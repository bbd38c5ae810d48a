"""The recipe of `pruneofa.compress` and `pruneofa compress`: from a model, two data files and a target. No torch."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from toolkit.core import machine
from toolkit.core.errors import UserError
from toolkit.core.yaml_document import dump_yaml
from toolkit.ir.products import BREAK_EVEN
from toolkit.models.included_models import included_student
from toolkit.pipeline.task_columns import Columns, find_columns
from toolkit.recipe import KINDS, Kind, Recipe
from toolkit.recipe.fields import NAME_RULE, Name
from toolkit.recipe.load import parse_recipe
from toolkit.recipe.references import is_hub

Target = Literal["latency", "size", "accuracy"]
Data = str | os.PathLike[str] | Iterable[Mapping[str, Any]]  # a file, or rows

TASK = "task"  # name of the task in the recipe
_NAME = "compress"  # of the recipe in error messages
_ANSWERS = {"max_seq_length": 384}  # question answering: windows must be longer than a question and their overlap
# Layers' outputs relative to the teacher's: no head is needed, so that any encoder can be a teacher.
_LAYERS = {"IntermediateLayersKnowledgeDistillationLoss": {"loss_types": ["SquareHead"]}}
_DENSE_ALONE = {"KnowledgeDistillationLoss": {"loss_weights": [0, 1]}}  # no labels
# Peak learning rates of the dense and of the sparse model: those of the quickstart, and of the recipes for BERT-Base.
_MINILM_RATES, _RATES = (1e-4, 5e-4), (3e-5, 1e-4)
_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}
_SPARSITY = 0.8  # of a student with all layers
# Zeros of the included student of fewer layers. As an embedding model it is level with that of all layers, and faster
# with VNNI: docs/results.md#zeros-or-fewer-layers.
_FEWER_LAYERS = (0.5, "4x1")


def best_pattern(target: Target, isa: Iterable[str], sparsity: float) -> str:
    """Returns the pattern of zeros that serves a target best on a CPU: `4x1` or `1x1`.

    With VNNI or AMX, dense INT8 is so fast that only blocks beat it; without, single zeros do, and lose less accuracy.
    Blocks need one index for four weights, so their files are smaller, and fewer zeros make them faster than dense
    matrices. Measured: docs/sparse-engine.md.

    Args:
        target: What counts.
        isa: The CPU's instruction sets.
        sparsity: Fraction of zeros.
    """
    if target == "latency":
        return "4x1" if set(isa) & _VNNI or sparsity < BREAK_EVEN["1x1"] else "1x1"
    return "4x1" if target == "size" else "1x1"


@dataclass(frozen=True)
class Compression:
    """What is compressed, on which data, and what for.

    Attributes:
        model: Folder, Hugging Face id, or package:<distribution>.
        train: Training split: a file, a pattern of files, a split on the hub, or rows (dicts).
        dev: Evaluation split, likewise.
        task: Kind of the task.
        target: What the variant is chosen by.
        sparsity: Fraction of zeros in each matrix of the encoder; None: 0.8, or for the latency of an embedding model
            with VNNI that of the included student of fewer layers.
        pattern: `1x1`, `4x1`, any other pattern of a recipe, or `auto` for the one that `best_pattern` returns.
        columns: Text columns; empty: found from the table's header.
        label: Label column; None: found from the table's header.
        name: Name of the run; None: the model's.
        runs: Directory that holds the run folders.
        overrides: Changes to the recipe, `key=value`.
    """

    model: str
    train: Data
    dev: Data
    task: str = "classification"
    target: str = "latency"
    sparsity: float | None = None
    pattern: str = "auto"
    columns: Sequence[str] = ()
    label: str | None = None
    name: str | None = None
    runs: Path = Path("runs")
    overrides: Sequence[str] = ()

    @property
    def folder(self) -> Path:
        """Run folder, which receives the files that are made of rows."""
        return self.runs / self.run_name

    @property
    def run_name(self) -> str:
        """Name of the run: the given one, or the last part of the model's."""
        local = Path(self.model)
        last = (
            local.resolve().name if local.is_dir() else re.sub("^package:|@.*|/+$", "", self.model).rpartition("/")[2]
        )
        return self.name or re.sub(r"[^\w.-]+", "-", last)

    def recipe(self) -> Recipe:
        """Returns the recipe; rows are written to JSON-lines files in the run folder.

        Raises:
            UserError: An argument is invalid, a file cannot be read, or the columns are ambiguous.
        """
        for what, value, allowed in (("task", self.task, KINDS), ("target", self.target, get_args(Target))):
            if value not in allowed:
                raise UserError(f"{value!r} is not a {what}", where=what, instead=f"one of {', '.join(allowed)}")
        try:
            TypeAdapter(Name).validate_python(self.run_name)  # before rows are written to the folder
        except ValidationError:
            what = f"{self.run_name!r} is not a valid folder name"
            raise UserError(what, where="name", instead=f"name=<{NAME_RULE}>") from None
        kind: Kind = self.task  # type: ignore[assignment]
        source = os.path.abspath(self.model) if Path(self.model).is_dir() else self.model  # noqa: PTH100 (no links)
        train, dev = (self._file(split, data) for split, data in (("train", self.train), ("dev", self.dev)))
        task = self._task(kind, train, dev)
        values: dict[str, Any] = {"name": self.run_name, "model": {"source": source}, "tasks": {TASK: task}}
        ready = included_student(source, *_FEWER_LAYERS, fewer_layers=True) if self._may_drop_layers(kind) else None
        ready = ready or included_student(source, *self._zeros())
        values |= {"ready": {"student": ready}} if ready else self._student(kind, task)
        values |= _task_stages(kind, *(_MINILM_RATES if ready else _RATES), reconstructed=not ready)
        timed = {"sequence_length": task["max_seq_length"]} if "max_seq_length" in task else {}
        values |= {"export": {}, "benchmark": {"evaluation": {"performance": timed}} if timed else {}}
        return parse_recipe(dump_yaml(values), _NAME, self.overrides)

    def _file(self, split: str, data: Data) -> str:
        """Returns the reference to a split's file, absolute so that the recipe can be run from anywhere."""
        if not isinstance(data, str | os.PathLike):
            return str(_write_rows(data, self.folder.absolute() / "data" / f"{split}.jsonl", split))
        spec = os.fspath(data)
        if is_hub(spec) or spec.startswith("package:"):
            return spec
        return os.path.abspath(os.path.expanduser(spec))  # noqa: PTH100, PTH111 (may be a pattern)

    def _task(self, kind: Kind, train: str, dev: str) -> dict[str, Any]:
        values: dict[str, Any] = {"kind": kind, "train": train, "dev": dev}
        found = find_columns(kind, train, self.columns, self.label)
        if found is not None:
            values |= _of_rows(found)
        elif self.columns or self.label:
            values |= _of_rows(Columns(tuple(self.columns), self.label))
        if KINDS[kind].dense_teaches:  # its dev rows may have another form than its training rows
            other = find_columns(kind, dev)
            if other is not None and other != found:
                values |= {"dev_columns": list(other.texts)} | ({"dev_label": other.label} if other.label else {})
        return values | (_ANSWERS if KINDS[kind].columns else {})

    def _zeros(self) -> tuple[float, str]:
        """Returns the fraction of zeros and their pattern in a student that keeps all layers."""
        sparsity = _SPARSITY if self.sparsity is None else self.sparsity
        if self.pattern != "auto":
            return sparsity, self.pattern
        return sparsity, best_pattern(self.target, machine.isa(), sparsity)  # type: ignore[arg-type]

    def _may_drop_layers(self, kind: Kind) -> bool:
        """Returns whether it is an embedding whose latency counts, where dense INT8 is fast, and no zeros are given."""
        given = self.sparsity is not None or self.pattern != "auto"
        fastest = self.target == "latency" and not _VNNI.isdisjoint(machine.isa())
        return KINDS[kind].dense_teaches and fastest and not given

    def _student(self, kind: Kind, task: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the sections that make the sparse student: reconstructed and distilled on the task's own texts."""
        sparsity, pattern = self._zeros()
        single = len(task.get("columns", "1")) == 1 or KINDS[kind].dense_teaches
        text = {"tasks": [TASK], "shape": "texts" if single else "pairs"}
        text |= {key: task[key] for key in ("max_seq_length",) if key in task}
        tiles = f"tile_pattern_{pattern}" if re.fullmatch(r"\d+x\d+", pattern) else pattern
        compression = {"target_sparsity": sparsity, "pattern": tiles}
        pruning = {"reconstruction": {}, "approach": {"weight_compression": compression}}
        train = {"epoch": 3, "dropout": 0, "optimizer": {"AdamW": {"learning_rate": 5e-4}}, "criterion": _LAYERS}
        student = {"pruning": pruning, "distillation": {"train": train}}
        return {"corpus": {"sources": [text]}, "student": student}


def _of_rows(columns: Columns) -> dict[str, Any]:
    label = {} if columns.label is None else {"label": columns.label}
    return ({"columns": list(columns.texts)} if columns.texts else {}) | label


def _task_stages(kind: Kind, dense_rate: float, sparse_rate: float, *, reconstructed: bool) -> dict[str, Any]:
    """Returns the sections that train a task; its dense model is fine-tuned first, unless it teaches as it is.

    Args:
        kind: Kind of the task.
        dense_rate: Peak learning rate of the dense model.
        sparse_rate: Peak learning rate of the sparse model.
        reconstructed: Whether its kept weights are computed for the dense model first. An included student, which was
            distilled for long, ended closer to its teacher as it was, on two of three tasks:
            docs/results.md#zeros-and-kept-weights-by-reconstruction.
    """
    dense = {"epoch": 3, "optimizer": {"AdamW": {"learning_rate": dense_rate}}}
    transfer: dict[str, Any] = {"epoch": 3, "dropout": 0, "optimizer": {"AdamW": {"learning_rate": sparse_rate}}}
    quantize: dict[str, Any] = {"epoch": 1, "dropout": 0}
    if KINDS[kind].dense_teaches:
        transfer["criterion"] = quantize["criterion"] = _DENSE_ALONE
    stages: dict[str, Any] = {
        "transfer": {"distillation": {"train": transfer}},
        "quantize": {"distillation": {"train": quantize}},
    }
    if not KINDS[kind].dense_teaches:
        if reconstructed:
            stages["transfer"]["reconstruction"] = {}
        stages = {"task_teacher": {"train": dense}} | stages
    return stages


def _write_rows(rows: Iterable[Mapping[str, Any]], path: Path, split: str) -> Path:
    """Writes rows as JSON lines: the same rows give the same file, so that finished stages are found again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, count = path.with_suffix(".partial"), 0
    with partial.open("w", encoding="utf-8") as file:
        for count, row in enumerate(rows, start=1):
            if not isinstance(row, Mapping):
                what, instead = f"row {count} is a {type(row).__name__}, not a dict", 'e.g. frame.to_dict("records")'
                raise UserError(what, where=split, instead=instead)
            try:
                file.write(json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n")
            except (TypeError, ValueError) as error:
                what = f"row {count} is not a row of texts, numbers and lists ({error})"
                raise UserError(what, where=split, instead='e.g. {"text": "a fine film", "label": 1}') from None
    if not count:
        raise UserError("there are no rows", where=split)
    partial.replace(path)
    return path
