"""Loads and saves Hugging Face models; says which of their matrices are pruned. Weights come from safetensors only."""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging

from toolkit.core.errors import UserError
from toolkit.models.architectures import is_in_layer, usable_positions
from toolkit.models.checkpoint import require_unquantized
from toolkit.recipe import Kind

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


_OR_TEACHER = ", or a `teacher` section, whose stage fits one to the words"
_VOCABULARIES = {"tokenizer.json", "vocab.txt", "vocab.json"}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' reports and bars: what matters in them is checked here and said as an error."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The fast tokenizer of a checkpoint; its `model_max_length` is what tokenizer and model both can do.

    Raises:
        UserError: There is none, it lacks special tokens, or it has more words than the model.
    """
    if not any(p.name in _VOCABULARIES or p.suffix == ".model" for p in folder.glob("*")):
        # transformers would make a tokenizer that knows special tokens only
        raise UserError("no tokenizer in this folder", where=str(folder), instead="a folder with tokenizer.json")
    try:
        with _quiet():
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        config = json.loads((folder / "config.json").read_text())
    except Exception as error:  # transformers raises unrelated types for each way in which a file can be bad
        raise _unloadable("tokenizer", folder, error) from None
    needed = ("cls_token_id", "sep_token_id", "pad_token_id", "mask_token_id")
    missing = [name.removesuffix("_id") for name in needed if getattr(tokenizer, name, None) is None]
    if not tokenizer.is_fast or missing:
        raise UserError(
            f"the tokenizer has no {', '.join(missing)}" if missing else "the tokenizer is not a fast one",
            where=str(folder),
            instead="the tokenizer.json of a BERT-like encoder",
        )
    if len(tokenizer) > config.get("vocab_size", len(tokenizer)):
        raise UserError(
            f"the tokenizer has {len(tokenizer)} words, the model only {config['vocab_size']}",
            where=str(folder),
            instead="the tokenizer that belongs to the model",
        )
    positions = usable_positions(config) or tokenizer.model_max_length
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    _forget_lengths(tokenizer)
    return tokenizer


def load_masked_lm(folder: Path, *, pairs: bool = False, fitted: bool = False) -> "PreTrainedModel":
    """A masked language model; a head that the checkpoint lacks is made from torch's global seed.

    Args:
        folder: The checkpoint.
        pairs: With the head of next-sentence prediction.
        fitted: It must have a head for words; that of next-sentence prediction may be made anew.

    Raises:
        UserError: The checkpoint is missing, damaged, or lacks weights of the encoder or of a fitted head; or its
            architecture has no such head.
    """
    if not pairs:
        return _load(AutoModelForMaskedLM, folder, whole=fitted)
    model = _load(AutoModelForPreTraining, folder, whole=fitted)
    if not hasattr(getattr(model, "cls", None), "seq_relationship"):
        raise UserError(
            f"{type(model).__name__} has no head for next-sentence prediction",
            where="corpus.pairs",
            instead="a BERT, or no `pairs`",
        )
    return model


def load_classifier(folder: Path, labels: Sequence[str], *, fitted: bool = False) -> "PreTrainedModel":
    """A sequence classifier for these class names; a head that the checkpoint lacks is made from torch's global seed.

    Raises:
        UserError: As `load_masked_lm`; or the checkpoint is a classifier already, for other classes.
    """
    names = dict(enumerate(labels))
    _must_classify(folder, labels)
    return _load(
        AutoModelForSequenceClassification,
        folder,
        whole=fitted,
        num_labels=len(labels),
        id2label=names,
        label2id={label: number for number, label in names.items()},
        problem_type="single_label_classification",
    )


def load_task_model(folder: Path, kind: Kind, labels: Sequence[str], *, fitted: bool) -> "PreTrainedModel":
    """A model with the head of a task's kind.

    Args:
        folder: The checkpoint.
        kind: Of the task.
        labels: Class names of a classification task.
        fitted: It knows the task already; else a head that it lacks is made from torch's global seed.

    Raises:
        UserError: As `load_classifier`; or it should know the task and lacks weights of the head.
    """
    if kind == "classification":
        return load_classifier(folder, labels, fitted=fitted)
    if kind == "regression":
        settings = {"num_labels": 1, "problem_type": "regression"}
        return _load(AutoModelForSequenceClassification, folder, whole=fitted, **settings)
    return _load(AutoModelForQuestionAnswering, folder, whole=fitted)


def prunable_matrices(model: "PreTrainedModel", patterns: Sequence[str] = ()) -> dict[str, nn.Linear]:
    """Parameter name -> module of the encoder's linear layers: attention and feed-forward, nothing else.

    Never embeddings, pooler or heads, so the names are the same whatever head is on top.

    Args:
        model: A model with a head.
        patterns: Regular expressions; a module is kept when one is found in its name. Empty: all are kept.

    Raises:
        UserError: The model has no stack of encoder layers, or a pattern finds nothing in it.
    """
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and is_in_layer(n)}
    if not found:
        raise UserError(
            f"no linear layers in a stack of encoder layers: nothing of this {type(model).__name__} can be pruned",
            where="model.source",
            instead="a BERT-like encoder",
        )
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in found):
            raise UserError(
                f"{pattern!r} matches no linear layer of the encoder",
                where="model.prunable",
                instead=f"a regular expression that matches names such as {next(iter(found))!r}",
            )
    kept = [name for name in found if not patterns or any(re.search(p, name) for p in patterns)]
    return {f"{name}.weight": found[name] for name in kept}


def save_checkpoint(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Writes a Hugging Face folder that `AutoModel….from_pretrained` opens."""
    _forget_lengths(tokenizer)
    with _quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _load(auto_class: Any, folder: Path, *, whole: bool = False, **settings: Any) -> "PreTrainedModel":
    """Weights of the encoder must be there; with `whole`, those of the head too."""
    require_unquantized(folder)
    try:
        with _quiet():
            model, report = auto_class.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                **settings,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unloadable("model", folder, error) from None
    encoder = {f"{model.base_model_prefix}.{name}" for name, _ in model.base_model.named_parameters()}
    fresh = sorted(n for n in encoder & set(report["missing_keys"]) if ".pooler." not in n)
    if fresh:
        raise UserError(
            f"the checkpoint lacks {len(fresh)} of the encoder's {len(encoder)} weights, e.g. {fresh[0]}",
            where=str(folder),
            instead=f"a checkpoint of a {type(model.base_model).__name__}",
        )
    missing = set(report["missing_keys"])
    if auto_class is AutoModelForPreTraining:
        missing = {n for n in missing if "seq_relationship" not in n and ".pooler." not in n}
    if whole and missing:
        lacking = min(missing, key=lambda n: (n.startswith(f"{model.base_model_prefix}."), n))
        pretrained = auto_class in (AutoModelForMaskedLM, AutoModelForPreTraining)
        raise UserError(
            f"this checkpoint was not fitted to the task: it lacks {lacking}",
            where=str(folder),
            instead=f"a checkpoint of a {type(model).__name__}{_OR_TEACHER if pretrained else ''}",
        )
    return model


def _must_classify(folder: Path, labels: Sequence[str]) -> None:
    """A checkpoint that has a classifier already must have it for these classes, in this order."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise _unloadable("model", folder, error) from None
    if not any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ()):
        return
    own = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    names = [own[number] for number in sorted(own, key=int)]
    if len(names) != len(labels) or (set(names) == set(labels) and names != list(labels)):
        raise UserError(
            f"this classifier's classes are {', '.join(names)}; the task's are {', '.join(labels)}",
            where=str(folder),
            instead=f"labels: [{', '.join(names)}]",
        )


def _forget_lengths(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Some checkpoints, and every call with a length, leave truncation and padding behind in the tokenizer."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()


def _unloadable(what: str, folder: Path, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(
        f"the {what} cannot be loaded by transformers {transformers.__version__} ({reason})",
        where=str(folder),
        instead="a folder with config.json, model.safetensors and tokenizer.json",
    )
