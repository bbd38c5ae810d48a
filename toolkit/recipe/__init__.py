"""Recipe types: one pydantic section per stage, with Intel Neural Compressor's key names where INC has the key.

Pure data: no torch, no file access. `load.py` reads these types from YAML. A stage without a section does not run.
Keys that exist in INC 1.x keep INC's names and nesting (`pruning.approach.weight_compression`,
`distillation.train.criterion.KnowledgeDistillationLoss`, `quantization.approach`, `tuning.accuracy_criterion`,
`evaluation.performance.configs`); all others are this toolkit's own.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from toolkit.recipe.benchmark import Benchmark as Benchmark
from toolkit.recipe.benchmark import Evaluation as Evaluation
from toolkit.recipe.benchmark import Performance as Performance
from toolkit.recipe.benchmark import PerformanceConfigs as PerformanceConfigs
from toolkit.recipe.corpus import Corpus as Corpus
from toolkit.recipe.corpus import Shape as Shape
from toolkit.recipe.corpus import Source as Source
from toolkit.recipe.distillation import Criterion as Criterion
from toolkit.recipe.distillation import Distillation as Distillation
from toolkit.recipe.distillation import DistillationTrain as DistillationTrain
from toolkit.recipe.distillation import IntermediateSettings as IntermediateSettings
from toolkit.recipe.distillation import KDLossSettings as KDLossSettings
from toolkit.recipe.distillation import Positions as Positions
from toolkit.recipe.distillation import Sample as Sample
from toolkit.recipe.distillation import StudentDistillation as StudentDistillation
from toolkit.recipe.distillation import Unlabelled as Unlabelled
from toolkit.recipe.export import DENSE as DENSE
from toolkit.recipe.export import DENSE_INT8 as DENSE_INT8
from toolkit.recipe.export import SHIPPED as SHIPPED
from toolkit.recipe.export import SHIPPED_FP32 as SHIPPED_FP32
from toolkit.recipe.export import VARIANTS as VARIANTS
from toolkit.recipe.export import Export as Export
from toolkit.recipe.export import Variant as Variant
from toolkit.recipe.export import VariantName as VariantName
from toolkit.recipe.export import engine_variant as engine_variant
from toolkit.recipe.export import variants_of_dense as variants_of_dense
from toolkit.recipe.fields import Count, FileName, Name, Number, Section, Seed, merged, require_expression, wrong
from toolkit.recipe.pruning import LOCK as LOCK
from toolkit.recipe.pruning import NO_RAMP, keys_without_effect
from toolkit.recipe.pruning import Pruning as Pruning
from toolkit.recipe.pruning import ResolvedPruner as ResolvedPruner
from toolkit.recipe.pruning import TaskPruning as TaskPruning
from toolkit.recipe.pruning import Tile as Tile
from toolkit.recipe.pruning import WeightCompression as WeightCompression
from toolkit.recipe.quantization import AccuracyCriterion as AccuracyCriterion
from toolkit.recipe.quantization import Quantization as Quantization
from toolkit.recipe.quantization import Tuning as Tuning
from toolkit.recipe.references import has_columns
from toolkit.recipe.stages import Quantize as Quantize
from toolkit.recipe.stages import Reconstruction as Reconstruction
from toolkit.recipe.stages import Student as Student
from toolkit.recipe.stages import StudentPruning as StudentPruning
from toolkit.recipe.stages import TrainOnly as TrainOnly
from toolkit.recipe.stages import Transfer as Transfer
from toolkit.recipe.stages import TransferReconstruction as TransferReconstruction
from toolkit.recipe.stages import TransferTuning as TransferTuning
from toolkit.recipe.task import KINDS as KINDS
from toolkit.recipe.task import OWN_STAGES as OWN_STAGES
from toolkit.recipe.task import AnswerWindows as AnswerWindows
from toolkit.recipe.task import HoldOut as HoldOut
from toolkit.recipe.task import Kind as Kind
from toolkit.recipe.task import Task as Task
from toolkit.recipe.train import AdamSettings as AdamSettings
from toolkit.recipe.train import AdamWSettings as AdamWSettings
from toolkit.recipe.train import Optimizer as Optimizer
from toolkit.recipe.train import SGDSettings as SGDSettings
from toolkit.recipe.train import Train as Train


class Model(Section):
    """The dense pre-trained model that all stages start from."""

    source: FileName = Field(
        min_length=1,
        description="folder, Hugging Face id (owner/name[@revision]), or package:<distribution>[/<folder inside>]",
    )
    framework: Literal["pytorch"] = Field("pytorch", description="INC's key; only pytorch is supported")
    prunable: tuple[str, ...] = Field(
        (),
        description="regular expressions on module names; empty: the encoder's linear layers, detected from the model",
    )

    @model_validator(mode="after")
    def _patterns_compile(self) -> "Model":
        for pattern in self.prunable:
            require_expression(pattern, "prunable")
        return self


class Recipe(Section):
    """One sparse pre-training and any number of tasks that reuse its sparse model."""

    version: Number = Field(1.0, ge=1, lt=2, description="version of the recipe format")
    name: Name = Field(description="run name; results are written to runs/<name>")
    description: str = Field("", description="one line, shown when the recipe runs")
    seed: Seed = Field(42, description="seed of all randomness")
    threads: Count | None = Field(None, description="number of torch threads; default: all cores")
    model: Model
    corpus: Corpus | None = None
    tasks: dict[Name, Task] = Field({}, description="name -> task; all tasks start from the same student")
    teacher: TrainOnly | None = None
    student: Student | None = None
    task_teacher: TrainOnly | None = None
    transfer: Transfer | None = None
    quantize: Quantize | None = None
    export: Export | None = None
    benchmark: Benchmark | None = None
    ready: dict[Literal["teacher", "student"], FileName] = Field(
        {}, description="checkpoints used instead of running a stage"
    )

    @model_validator(mode="before")
    @classmethod
    def _merge_task_sections(cls, values: Any) -> Any:
        """Merges each task's stage sections over the recipe's sections of the same name, key by key."""
        if not isinstance(values, dict) or not isinstance(values.get("tasks"), dict):
            return values
        tasks = {
            name: task | {k: merged(values[k], task[k]) for k in OWN_STAGES if _both(values.get(k), task.get(k))}
            if isinstance(task, dict)
            else task
            for name, task in values["tasks"].items()
        }
        return values | {"tasks": tasks}

    def section(self, stage: str, task: str | None = None) -> Any:
        """Returns a stage's section: the task's own if it has one, else the recipe's; None if the stage does not run.

        Args:
            stage: Name of the stage.
            task: Name of the task; None for stages that are not run per task.
        """
        own = getattr(self.tasks[task], stage, None) if task else None
        return own or getattr(self, stage)

    @model_validator(mode="after")
    def _stages_have_what_they_need(self) -> "Recipe":
        for stage in ("teacher", "student"):
            if getattr(self, stage) and self.corpus is None:
                raise wrong("needs text, but there is no `corpus`", stage, instead="corpus: {files: [text.txt]}")
        _check_corpus(self)
        for stage in ("task_teacher", "transfer", "quantize", "export", "benchmark"):
            if getattr(self, stage) and not self.tasks:
                raise wrong("needs a task, but `tasks` is empty", stage, instead="tasks: {<name>: {…}}")
        sparse = self.student is not None or "student" in self.ready
        made = self.student if "student" not in self.ready else None
        stays_dense = made is not None and made.pruning is None
        for name in self.tasks:
            _check_distance(self, name)
            _check_unlabelled(self, name)
            if KINDS[self.tasks[name].kind].dense_teaches:
                self.tasks[name] = _taught_by_dense(self, name)
        for own in (None, *self.tasks):
            transfer = self.section("transfer", own)
            if transfer and transfer.pruning.only_locks and not sparse:
                at = ("tasks", own, "transfer") if own and self.transfer is None else ("transfer",)
                raise wrong("needs a sparse model", *at, instead="a `student` section, or `ready: {student: …}`")
            if transfer and transfer.pruning.only_locks and not transfer.pruning.locks_all and stays_dense:
                at = ("tasks", own, "transfer") if own and self.tasks[own].transfer else ("transfer",)
                what = "selects matrices to lock, but the student is dense"
                raise wrong(what, *at, "pruning", instead="no `names`: a dense student is trained without a lock")
            if transfer and transfer.reconstruction and made is not None and made.layers is not None:
                at = ("tasks", own, "transfer") if own and self.tasks[own].transfer else ("transfer",)
                what = "needs a student with all layers of its teacher, but `student.layers` leaves some out"
                raise wrong(what, *at, "reconstruction", instead="remove the key")
        _check_schedules(self)
        return self


def _taught_by_dense(recipe: Recipe, name: str) -> Task:
    """Returns a task with the dense model as its ready task teacher, unless a section fits one to its labels.

    Raises:
        PydanticCustomError: A stage needs labels, and the task has none.
    """
    task = recipe.tasks[name]
    if not task.has_targets:
        if task.task_teacher is not None and recipe.task_teacher is None:
            what = "needs labels to fit the dense model to; without them the dense model teaches as it is"
            raise wrong(what, "tasks", name, "task_teacher", instead="remove the section")
        for stage in ("transfer", "quantize"):
            if stage not in task.ready:
                _require_teacher_alone(recipe, name, stage)
    fitted = task.has_targets and recipe.section("task_teacher", name) is not None
    if fitted or "task_teacher" in task.ready:
        return task
    return task.model_copy(update={"ready": task.ready | {"task_teacher": recipe.model.source}})


def _require_teacher_alone(recipe: Recipe, name: str, stage: str) -> None:
    """Rejects a training of a task without labels that would need them."""
    section = recipe.section(stage, name)
    if section is None or section.train is None:
        return
    at = ("tasks", name, stage) if getattr(recipe.tasks[name], stage) is not None else (stage,)
    what = f"{name!r} has no labels"
    if section.distillation is None:
        own = "pruning" if stage == "transfer" else "quantization"
        raise wrong(
            f"{what} to train with", *at, own, "train", instead="distillation: {train: …}, from the dense model"
        )
    if found := section.distillation.train.criterion.use_of_labels():
        raise wrong(what, *at, "distillation", "train", "criterion", *found[0], instead=found[1])


def _check_unlabelled(recipe: Recipe, name: str) -> None:
    """Rejects examples without labels where a task's kind cannot have them, and pairs of a task with single texts."""
    task = recipe.tasks[name]
    for stage in ("transfer", "quantize"):
        section = recipe.section(stage, name)
        if section is None or section.unlabelled is None:
            continue
        at = ("tasks", name, stage) if getattr(task, stage) is not None else (stage,)
        keys = (*at, "distillation", "unlabelled")
        if not KINDS[task.kind].takes_unlabelled:
            kinds = ", ".join(kind for kind, rules in KINDS.items() if rules.takes_unlabelled)
            what = f"{name!r} is a task of {task.kind.replace('_', ' ')}; examples without labels are for {kinds}"
            raise wrong(what, *keys, instead="remove the key")
        if section.unlabelled.pairs and stage == "quantize":
            what = "has no effect: new pairs are made for `transfer`"
            raise wrong(what, *keys, "pairs", instead="files: [<file>], or no `unlabelled`")
        if section.unlabelled.pairs and len(task.columns) != 2:
            raise wrong(f"{name!r} has no second text", *keys, "pairs", instead="files: [<file>], or no `unlabelled`")


def _both(below: Any, above: Any) -> bool:
    return isinstance(below, dict) and isinstance(above, dict)


def _check_corpus(recipe: Recipe) -> None:
    """Rejects columns of plain text, unknown tasks, and pairs that are too short for the windows of their task."""
    for number, part in enumerate(recipe.corpus.parts if recipe.corpus else ()):
        at = ("corpus", "sources", number) if isinstance(part, Source) else ("corpus",)
        if part.column != "text" and not any(map(has_columns, part.files)):
            raise wrong("has no effect: plain text has no columns", *at, "column", instead="remove the key")
        for name in part.tasks:
            if name not in recipe.tasks:
                raise wrong(f"{name!r} is not under `tasks`", *at, "tasks", instead=", ".join(recipe.tasks))
            least = recipe.tasks[name].least_length
            if isinstance(part, Source) and part.shape == "pairs" and part.max_seq_length <= least:
                what = f"too short for the windows of {name!r}, which would not advance"
                raise wrong(what, *at, "max_seq_length", instead=f"more than {least}")


def _check_schedules(recipe: Recipe) -> None:
    """Rejects a pruning schedule of `transfer` that no task's pruners use, such as a target beside a pattern lock."""
    sections = {name: section for name in recipe.tasks if (section := recipe.section("transfer", name))}
    general = recipe.transfer.pruning if recipe.transfer else None
    for task, key in keys_without_effect(general, {name: section.pruning for name, section in sections.items()}):
        at = ("tasks", task, "transfer") if task else ("transfer",)
        keys = ("pruning", "approach", "weight_compression", key)
        raise wrong(NO_RAMP, *at, *keys, instead="pruners: [{prune_type: magnitude}], or remove the key")
    if all(section.pruning.only_locks for section in sections.values()):
        for task, section in sections.items():
            if section.pruning.learning_rate_rewinding:
                at = ("transfer",) if general and general.learning_rate_rewinding else ("tasks", task, "transfer")
                raise wrong(NO_RAMP, *at, "pruning", "learning_rate_rewinding", instead="false")


def _check_distance(recipe: Recipe, name: str) -> None:
    """Rejects MSE for question answering: it has one logit per token, so only distributions can be compared."""
    task = recipe.tasks[name]
    for stage in ("transfer", "quantize"):
        section = recipe.section(stage, name)
        rules = KINDS[task.kind]
        if not rules.per_token or rules.tagged or section is None or section.distillation is None:
            continue
        logits = section.distillation.train.criterion.logits
        if logits is not None and logits.loss_types[1] == "MSE":
            at = ("tasks", name, stage) if getattr(task, stage) is not None else (stage,)
            keys = ("distillation", "train", "criterion", "KnowledgeDistillationLoss", "loss_types")
            raise wrong(
                f"MSE compares logits one by one, but the number of logits of {name!r} varies with the text length",
                *at,
                *keys,
                instead="[CE, KL]",
            )
