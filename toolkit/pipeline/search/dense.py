"""The dense model that the search prunes, the text that it prunes on, and how the result is scored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from toolkit.core.errors import UserError
from toolkit.core.files import content_hash, json_hash
from toolkit.data.corpus import load_corpus
from toolkit.data.corpus.sequences import draw, in_proportion
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.data.tasks import load_task
from toolkit.models.checkpoint import encoder_matrices
from toolkit.models.load import load_task_model, load_tokenizer
from toolkit.pipeline.cache_keys import data_hashes, section_values, sections_of
from toolkit.pipeline.graph import Step, plan
from toolkit.recipe import KINDS, Kind, Quantization, Recipe, Reconstruction
from toolkit.training.datasets import on_device, unmasked_batches
from toolkit.training.evaluation import predict
from toolkit.training.hardware import device
from toolkit.training.reconstruction import require_tokens

_HELD_OUT = 256  # sequences
_TUNING = 1000  # training examples that select, if the recipe holds out none


@dataclass(frozen=True)
class Dense:
    """A dense model, ready to be pruned and scored.

    Attributes:
        folder: Its checkpoint.
        kind: Kind of its head.
        model: The model, in eval mode.
        tokenizer: Its tokenizer.
        texts: Model inputs that calibrate.
        longest: Tokens of the longest text that it is trained on.
        measure: Returns the score of a model.
        score_name: What the score is, and of what.
        key: Hash of everything but the point that a score depends on.
        task: Task whose settings apply; None: the recipe's.
        remark: What a reader of the scores has to know; empty: nothing.
    """

    folder: Path
    kind: Kind
    model: Any
    tokenizer: Any
    texts: list[dict[str, Any]]
    longest: int
    measure: Callable[[Any], float]
    score_name: str
    key: str
    task: str | None
    remark: str = ""


def dense_model(recipe: Recipe, run_folder: Path, inputs: ResolvedInputs, task: str | None, log: Any) -> Dense:
    """Returns the model that the search prunes: a task teacher that is ready or trained, else the student's teacher.

    Args:
        recipe: The recipe; it has a student and a corpus.
        run_folder: Folder of the run.
        inputs: Models and data files.
        task: Name of the task that scores; None: the first one with a task teacher, or none.
        log: Receives progress messages.

    Raises:
        UserError: The named task has no task teacher of the student's architecture, or a file is missing or damaged.
    """
    steps = plan(recipe, run_folder, inputs)
    teacher = next((s.folder for s in steps if s.stage.name == "teacher" and s.manifest), None)
    folder = teacher or _folder(inputs, recipe.ready.get("teacher", recipe.model.source))
    for name in recipe.tasks if task is None else [task]:
        task_teacher = _task_teacher(recipe, name, steps, inputs)
        if task_teacher is not None and encoder_matrices(task_teacher) == encoder_matrices(folder):
            return _of_task(recipe, name, task_teacher, inputs)
    if task is not None:
        raise UserError(
            f"{task!r} has no task teacher of the student's architecture",
            where="--task",
            instead="run --only task_teacher first, or leave the option out: then no labels are used",
        )
    return _of_text(recipe, folder, run_folder, inputs, log)


def _task_teacher(recipe: Recipe, name: str, steps: Sequence[Step], inputs: ResolvedInputs) -> Path | None:
    """Returns the folder of a task's dense model; None if it is not trained yet, or the task has no labels."""
    section = recipe.tasks[name]
    if KINDS[section.kind].dense_teaches:
        return None
    if "task_teacher" in section.ready:
        return _folder(inputs, section.ready["task_teacher"])
    own = (s for s in steps if (s.stage.name, s.task) == ("task_teacher", name))
    return next((step.folder for step in own if step.manifest), None)


def _folder(inputs: ResolvedInputs, source: str) -> Path:
    folder = inputs.model(source).folder
    assert folder is not None, "inputs are fetched"
    return folder


def _of_task(recipe: Recipe, name: str, folder: Path, inputs: ResolvedInputs) -> Dense:
    """Returns a task teacher, scored on training rows that are held out."""
    section, tokenizer = recipe.tasks[name], load_tokenizer(folder)
    held_out = section.tuning_examples > 0
    task = load_task(name, section if held_out else section.model_copy(update={"tuning_examples": _TUNING}), tokenizer)
    if not len(task.tune):
        what = f"{len(task.train):,} training examples are too few to hold out some that score"
        raise UserError(what, where=f"tasks.{name}.train", instead="more rows, or no task teacher: then texts score")
    count = recipe.transfer.reconstruction.examples if recipe.transfer and recipe.transfer.reconstruction else 1024
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(recipe.seed))[:count].tolist()
    model = load_task_model(folder, task.kind, task.labels, fitted=True, pooling=task.pooling).eval()
    texts = [task.train[index] for index in order]
    remark = (
        ""
        if held_out
        else f"The teacher may have been trained on the rows that score (tasks.{name}.tuning_examples: 0)."
    )
    return Dense(
        folder,
        task.kind,
        model,
        tokenizer,
        _calibration(recipe, folder, texts, tokenizer.pad_token_id, f"tasks.{name}.train"),
        section.max_seq_length,
        lambda own: task.tuning_score(predict(own, task.tune, tokenizer.pad_token_id)),
        f"{task.tuning_metric} of {name} on {len(task.tune.truth):,} training rows held out",
        _key(recipe, folder, ("task",), name, inputs, len(texts)),
        name,
        remark,
    )


def _of_text(recipe: Recipe, folder: Path, run_folder: Path, inputs: ResolvedInputs, log: Any) -> Dense:
    """Returns the student's teacher, scored by its own outputs on held-out text of the corpus."""
    assert recipe.corpus is not None
    assert recipe.student is not None
    tokenizer, embeds = load_tokenizer(folder), [t for t in recipe.tasks.values() if t.kind == "embedding"]
    pooling = (embeds[0].pooling, embeds[0].normalize) if embeds else (None, None)
    model = load_task_model(folder, "embedding", (), fitted=True, pooling=pooling).eval().to(device())
    sections = sections_of(recipe, ("corpus_tasks",), None)
    text = load_corpus(
        recipe.corpus, sections["corpus_tasks"], tokenizer, run_folder / ".cache", seed=recipe.seed, log=log
    )
    held_out = [text.valid.example(i) for part in in_proportion(text.valid, _HELD_OUT) for i in part]
    batches = on_device(unmasked_batches(held_out, tokenizer.pad_token_id))
    with torch.no_grad():
        wanted = [model(**batch) for batch in batches]
    texts = draw(text.train, settings_of(recipe).calibration.sequences, recipe.seed)
    return Dense(
        folder,
        "embedding",
        model,
        tokenizer,
        _calibration(
            recipe, folder, texts, tokenizer.pad_token_id, "student.pruning.reconstruction.calibration.sequences"
        ),
        recipe.corpus.longest,
        partial(_cosine if embeds else _similarity, batches, wanted),
        ("cosine of embeddings to the dense ones" if embeds else "1 - relative error of the last hidden states")
        + f", on {len(held_out):,} held-out sequences",
        _key(recipe, folder, ("corpus", "corpus_tasks"), None, inputs, len(texts)),
        None,
    )


def settings_of(recipe: Recipe) -> Reconstruction:
    """Returns the recipe's settings of reconstruction, or the defaults."""
    pruning = recipe.student.pruning if recipe.student else None
    return (pruning.reconstruction if pruning else None) or Reconstruction()


def quantization_of(recipe: Recipe, task: str | None) -> Quantization:
    """Returns the recipe's settings of quantization, of a task or of the first one, or the defaults."""
    names = [task] if task else list(recipe.tasks)
    found = [section.quantization for name in names if (section := recipe.section("quantize", name)) is not None]
    return found[0] if found else Quantization()


def _calibration(recipe: Recipe, folder: Path, texts: Sequence[Any], pad_id: int, where: str) -> list[dict[str, Any]]:
    """Returns the model inputs of the texts that calibrate, if they have enough tokens for the widest matrix."""
    widest = max(shape[1] for shape in encoder_matrices(folder).values())
    tokens = sum(len(text["input_ids"]) for text in texts)
    require_tokens(tokens, widest, len(texts), len(texts), where)
    return on_device(unmasked_batches(texts, pad_id))


def _key(
    recipe: Recipe, folder: Path, names: tuple[str, ...], task: str | None, inputs: ResolvedInputs, texts: int
) -> str:
    """Returns a hash of what all scores depend on; `texts` is the number of texts that calibrate."""
    sections = sections_of(recipe, ("model", *names), task)
    settings = settings_of(recipe).model_dump(mode="json")
    values = {name: section_values(name, section) for name, section in sections.items()}
    return json_hash([content_hash(folder), values, data_hashes(sections, inputs)[1], settings, recipe.seed, texts])


@torch.no_grad()
def _cosine(batches: Sequence[Any], wanted: Sequence[Any], model: Any) -> float:
    """Returns the mean cosine of a model's embeddings to the dense ones."""
    found = [
        F.cosine_similarity(model(**batch).sentence_embedding, dense.sentence_embedding)
        for batch, dense in zip(batches, wanted, strict=True)
    ]
    return float(torch.cat(found).mean())


@torch.no_grad()
def _similarity(batches: Sequence[Any], wanted: Sequence[Any], model: Any) -> float:
    """Returns 1 minus the squared difference of the last hidden states, relative to the variance of the dense ones."""
    real = [batch["attention_mask"].bool() for batch in batches]
    own = torch.cat([model(**batch).last_hidden_state[r] for batch, r in zip(batches, real, strict=True)])
    dense = torch.cat([output.last_hidden_state[r] for output, r in zip(wanted, real, strict=True)])
    return 1 - float((own - dense).square().sum() / (dense - dense.mean(0)).square().sum())
