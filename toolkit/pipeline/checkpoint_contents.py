"""Checks that a recipe's checkpoints contain what its stages will load from them, by their files. Loads no torch."""

import importlib.util
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.core.errors import UserError
from toolkit.data.masking import require_word_marks
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.models.architectures import (
    ARCHITECTURES,
    MLM_HEAD_OF,
    architecture_of,
    matrix_shapes,
    require_mlm_head,
    require_next_sentence_head,
)
from toolkit.models.checkpoint import StoredTensor, stored_tensors
from toolkit.models.tokenizers import require_tokenizer, require_tokens_within, stored_tokenizers
from toolkit.recipe import KINDS, Kind, Recipe

# Attribute of a masked-LM head -> a weight that every checkpoint with this head has.
_MLM_WEIGHTS = {
    "cls": "cls.predictions.transform.dense.weight",
    "lm_head": "lm_head.dense.weight",
    "predictions": "predictions.dense.weight",
    "generator_lm_head": "generator_predictions.dense.weight",
    "vocab_projector": "vocab_transform.weight",
    "decoder": "decoder.bias",  # classifiers have its `head` too, and its matrix is the embeddings
}
# Numbers of logits of kinds without classes; those of `HEADS`, which load torch.
_WIDTHS: dict[Kind, int] = {"regression": 1, "question_answering": 2, "embedding": 0, "reranking": 1}
_EMBEDDINGS = {
    "word_embeddings": "vocab_size",
    "tok_embeddings": "vocab_size",
    "position_embeddings": "max_position_embeddings",
}


def check_contents(recipe: Recipe, inputs: ResolvedInputs) -> None:
    """Checks type, encoder, heads and tokenizer of each local checkpoint, as the stages that load it need them.

    Raises:
        UserError: The first error found.
    """
    for source in dict.fromkeys(sources_of(recipe)):
        model = inputs.model(source)
        if model.folder is not None:
            config = model.config or {}
            _require_known_type(config, model.folder)
            _require_encoder(config, model.folder)
            require_tokenizer(model.folder)
            require_tokens_within(model.folder, config.get("vocab_size"))
    _check_pretraining(recipe, inputs)


def check_task_heads(recipe: Recipe, inputs: ResolvedInputs) -> None:
    """Checks that each ready model of a task was trained for a task of this kind.

    Raises:
        UserError: The first error found.
    """
    for name, task in recipe.tasks.items():
        width = len(task.classes) if KINDS[task.kind].has_classes else _WIDTHS[task.kind]
        for source in task.ready.values():
            model = inputs.model(source)
            if model.folder is not None:
                _require_task_head(task.kind, width, model.config or {}, model.folder, name)


def sources_of(recipe: Recipe) -> Iterator[str]:
    """Yields every reference to a model of a recipe."""
    yield recipe.model.source
    yield from recipe.ready.values()
    for task in recipe.tasks.values():
        yield from task.ready.values()


def _check_pretraining(recipe: Recipe, inputs: ResolvedInputs) -> None:
    """Checks the heads that pre-training needs: their type, and the weights of those that no stage trains."""
    if recipe.corpus is None or not (recipe.teacher or recipe.student):
        return
    model = inputs.model(recipe.ready.get("teacher", recipe.model.source))
    kind = (model.config or {}).get("model_type")
    if model.config is None:
        return
    train = recipe.student.train if recipe.student else None
    logits, layers = (train.criterion.logits, train.criterion.layers) if train else (None, None)
    words = logits is not None or (layers is not None and layers.add_origin_loss)
    if recipe.teacher or words:
        head = require_mlm_head(kind)
        fitted = logits is not None and logits.loss_weights[1] > 0 and recipe.teacher is None
        if fitted and model.folder is not None and _MLM_WEIGHTS[head] not in stored_tensors(model.folder):
            raise UserError(
                f"this checkpoint was not trained for the task: it lacks {_MLM_WEIGHTS[head]}",
                where=str(model.folder),
                instead="a checkpoint with a masked-LM head, or a `teacher` section, whose stage trains one",
            )
    if recipe.corpus.pairs is not None:
        require_next_sentence_head(kind)
    if recipe.corpus.whole_word_masking and model.folder:
        for tokenizer in stored_tokenizers(model.folder)[:1]:
            require_word_marks(tokenizer)


def _require_known_type(config: Mapping[str, Any], folder: Path) -> None:
    """Checks that the type of a model is supported; code that comes with a checkpoint is never run."""
    kind, where = config.get("model_type"), str(folder / "config.json")
    if not isinstance(kind, str) or not kind:
        raise UserError("`model_type` is missing", where=where, instead='"model_type": "bert"')
    if kind == "deberta-v2" and config.get("relative_attention") and not config.get("share_att_key"):
        what = "matrices of their own for relative positions (share_att_key: false) are not supported"
        raise UserError(what, where=where, instead="a DeBERTa with share_att_key: true, as DeBERTa-v3 has")
    if kind in MLM_HEAD_OF:
        return
    module = kind.replace("-", "_")
    found = importlib.util.find_spec("transformers")
    folders = Path(found.origin).parent / "models" if found and found.origin else None
    if folders and not any((folders / name).is_dir() for name in (module, module.partition("_")[0])):
        code = ": it brings code of its own, which is not run" if config.get("auto_map") else ""
        raise UserError(f"model_type {kind!r} is unknown to transformers{code}", where=where, instead="e.g. bert")
    supported = f"a model of type {', '.join(ARCHITECTURES)}"
    raise UserError(f"models of type {kind} are not supported", where=where, instead=supported)


def _require_encoder(config: Mapping[str, Any], folder: Path) -> None:
    """Checks that the encoder's matrices and embeddings are complete and have the sizes of `config.json`."""
    if config.get("model_type") not in ARCHITECTURES:
        return
    try:
        wanted: dict[str, tuple[int, ...]] = dict(matrix_shapes(config))
    except (KeyError, TypeError):
        return  # sizes that are missing have defaults of their architecture
    found = stored_tensors(folder)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(
            f"the checkpoint lacks {len(missing)} of the encoder's {len(wanted)} matrices, e.g. {missing[0]}",
            where=str(folder),
            instead=f"a complete checkpoint of a model of type {config['model_type']}",
        )
    for name, shape in wanted.items():
        _require_shape(found[name], name, shape, folder)
    prefix = architecture_of(config).prefix
    for table, key in _EMBEDDINGS.items():
        name, rows = f"{prefix}.embeddings.{table}.weight", config.get(key)
        if name in found and isinstance(rows, int) and found[name].shape:
            _require_shape(found[name], name, (rows, *found[name].shape[1:]), folder)


def _require_shape(tensor: StoredTensor, name: str, shape: tuple[int, ...], folder: Path) -> None:
    if tensor.shape != shape:
        stored, wanted = ("x".join(map(str, sizes)) for sizes in (tensor.shape, shape))
        what = f"{name} is {stored}, but config.json describes {wanted}"
        raise UserError(what, where=str(folder), instead="the config.json that was saved with these weights")


def _require_task_head(kind: Kind, width: int, config: Mapping[str, Any], folder: Path, task: str) -> None:
    """Checks that a ready task model was trained for this kind of task; `width` is 0 if the classes are not known."""
    if config.get("model_type") not in MLM_HEAD_OF or kind == "embedding":  # the encoder alone
        return
    found = stored_tensors(folder)
    heads = ["classifier", "classifier.out_proj"]  # the known architectures' names of the last layer
    heads = [architecture_of(config).answer_head] if kind == "question_answering" else heads
    names = [f"{head}.weight" for head in heads]
    last = next((name for name in names if name in found), None)
    if last is None:
        raise UserError(
            f"this checkpoint was not trained for the task: it lacks {names[0]}",
            where=str(folder),
            instead=f"a checkpoint for {kind.replace('_', ' ')}, as tasks.{task} is",
        )
    outputs = found[last].shape[0] if found[last].shape else math.nan
    if width and outputs != width:
        what = f"this checkpoint's head has {outputs} outputs; tasks.{task} ({kind.replace('_', ' ')}) needs {width}"
        raise UserError(what, where=str(folder), instead="a checkpoint that was trained for this task")
