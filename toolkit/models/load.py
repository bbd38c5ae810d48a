"""Loading and saving of Hugging Face models, and their prunable matrices. Weights are read from safetensors only."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
)
from transformers.utils import logging

from toolkit.core.errors import UserError
from toolkit.core.files import require_regular_files
from toolkit.models.architectures import hidden_size, is_in_layer, require_next_sentence_head, usable_positions
from toolkit.models.checkpoint import require_unquantized
from toolkit.models.classes import class_names, output_order
from toolkit.models.config import read_config
from toolkit.models.embedding.folder import PoolingKeys, SentencePooling, pooling_of, stored_pooling, write_pooling
from toolkit.models.embedding.prompts import prompts_of_tokenizer, stored_prompts, write_prompts
from toolkit.models.reranking import write_modules
from toolkit.models.task_heads import HEADS
from toolkit.models.tokenizers import require_tokenizer
from toolkit.recipe import KINDS, Kind, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


_OR_TEACHER = ", or a `teacher` section, whose stage trains the masked-LM head"
# No network, and none of the folder's own code, which transformers would offer to run in a prompt on the terminal.
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the logs and progress bars of transformers; the conditions that matter are raised as errors here."""
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
    """Returns the fast tokenizer of a checkpoint; `model_max_length` is capped to the model's positions.

    Raises:
        UserError: The tokenizer is missing or damaged, lacks special tokens, or has more tokens than the model.
    """
    require_regular_files(folder)
    require_tokenizer(folder)
    try:
        with _quiet():
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, **_LOCAL)
    except Exception as error:  # transformers raises many unrelated types for damaged files
        raise _load_error("tokenizer", folder, error) from None
    config = read_config(folder)
    needed = ("cls_token_id", "sep_token_id", "pad_token_id", "mask_token_id")
    missing = [name.removesuffix("_id") for name in needed if getattr(tokenizer, name, None) is None]
    if not tokenizer.is_fast or missing:
        raise UserError(
            f"the tokenizer has no {', '.join(missing)}" if missing else "the tokenizer is not a fast tokenizer",
            where=str(folder),
            instead="the tokenizer.json of a BERT-like encoder",
        )
    if len(tokenizer) > config.get("vocab_size", len(tokenizer)):
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only {config['vocab_size']}",
            where=str(folder),
            instead="the tokenizer that belongs to the model",
        )
    longest = tokenizer.model_max_length
    if not isinstance(longest, int | float) or not longest > 0:
        what = f"the tokenizer's model_max_length is {longest!r}"
        raise UserError(what, where=str(folder / "tokenizer_config.json"), instead="a number of tokens")
    tokenizer.model_max_length = min(longest, usable_positions(config) or longest)
    _reset_lengths(tokenizer)
    return tokenizer


def load_masked_lm(folder: Path, *, pairs: bool = False, fitted: bool = False) -> "PreTrainedModel":
    """Returns a masked language model. A missing head is initialised from torch's global seed.

    Args:
        folder: The checkpoint folder.
        pairs: Whether the model has a next-sentence head as well.
        fitted: Whether the checkpoint must include the masked-LM head; a missing next-sentence head is initialised.

    Raises:
        UserError: The checkpoint is missing, damaged, or lacks encoder weights or a required head; or its
            architecture has no next-sentence head.
    """
    if not pairs:
        return _load(AutoModelForMaskedLM, folder, fitted=fitted)
    model = _load(AutoModelForPreTraining, folder, fitted=fitted)
    require_next_sentence_head(model.config.model_type)
    return model


def load_task_model(
    folder: Path, kind: Kind, labels: Sequence[str], *, fitted: bool, pooling: PoolingKeys = (None, None)
) -> "PreTrainedModel":
    """Loads a model with the head of a task's kind.

    The outputs of a classifier whose classes have the task's names in another order are put into the task's order.

    Args:
        folder: The checkpoint folder.
        kind: The task's kind.
        labels: The class names, in the order of the class numbers; empty for a kind without classes.
        fitted: Whether the checkpoint must include the head; if not, a missing one is initialised from torch's seed.
        pooling: The task's `pooling` and `normalize`, for an embedding model whose folder does not state them.

    Raises:
        UserError: The checkpoint is missing or damaged, or lacks weights of the encoder or of a fitted head; or it is
            a classifier for other classes.
    """
    head = HEADS[kind]
    order = output_order(folder, labels) if KINDS[kind].has_classes else None
    settings = head.settings(labels) if kind != "embedding" else {"pooling": pooling_of(folder, pooling)}
    model = _load(head.auto_class, folder, fitted=fitted, **settings)
    if order is not None and order != sorted(order):
        _reorder_outputs(model, order)
    return model


def model_of_shapes(config: Mapping[str, Any], kind: Kind | None) -> "PreTrainedModel | None":
    """Returns a model on torch's meta device: modules and shapes, without weights. None if it cannot be built.

    Args:
        config: Content of a `config.json`.
        kind: Kind of the task that its head is for; None: masked language modelling.
    """
    values = {key: value for key, value in config.items() if key not in ("model_type", "dtype", "torch_dtype")}
    try:
        with _quiet(), torch.device("meta"):
            made = AutoConfig.for_model(str(config.get("model_type")), **values)
            auto_class: Any = HEADS[kind].auto_class if kind else AutoModelForMaskedLM
            model: PreTrainedModel = auto_class.from_config(made).eval()
    except Exception:  # transformers raises many unrelated types; loading the model reports it
        return None
    return model


def prunable_matrices(model: "PreTrainedModel", patterns: Sequence[str] = ()) -> dict[str, nn.Linear]:
    """Returns parameter name -> module of the linear layers in the encoder's attention and feed-forward blocks.

    Embeddings, pooler and heads are excluded, so the names do not depend on the head.

    Args:
        model: A model with a head.
        patterns: Regular expressions on module names; a module is returned if one matches. Empty: all modules.

    Raises:
        UserError: The model has no stack of encoder layers, or a pattern matches none of its linear layers.
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


def save_checkpoint(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", folder: Path, task: Task | None = None
) -> None:
    """Writes a Hugging Face folder that `AutoModel….from_pretrained` can load.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        folder: The folder.
        task: The task that the model was trained for, if any.
    """
    _reset_lengths(tokenizer)
    with _quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if task is not None:
        save_modules(model, tokenizer, folder, task)
    elif tokenizer.name_or_path:
        _keep_modules(model, tokenizer, Path(tokenizer.name_or_path), folder)


def _keep_modules(model: Any, tokenizer: "PreTrainedTokenizerFast", source: Path, folder: Path) -> None:
    """Keeps how a model pools and its prompts, so that a later stage of an embedding task does as its dense model."""
    # Modules and prompts that are not supported were refused before, if a task needs them.
    with contextlib.suppress(UserError):
        if pooling := stored_pooling(source):
            write_pooling(folder, pooling, hidden_size(model.config.to_dict()), tokenizer.model_max_length)
    with contextlib.suppress(UserError):
        write_prompts(folder, stored_prompts(source))


def save_modules(model: Any, tokenizer: "PreTrainedTokenizerFast", folder: Path, task: Task) -> None:
    """Adds to the folder of an embedding model or a reranker what sentence-transformers needs to open it.

    Args:
        model: The model of a task, of any kind.
        tokenizer: Its tokenizer.
        folder: Folder of the model and its tokenizer, as a checkpoint or an IR.
        task: The task that it was trained for; longer texts than its `max_seq_length` are truncated.
    """
    if isinstance(pooling := getattr(model, "pooling", None), SentencePooling):
        write_pooling(folder, pooling, hidden_size(model.config.to_dict()), task.max_seq_length)
        write_prompts(folder, prompts_of_tokenizer(tokenizer, task))
    elif task.kind == "reranking":
        write_modules(folder, task.ranking.loss, task.max_seq_length)


def _load(auto_class: Any, folder: Path, *, fitted: bool = False, **settings: Any) -> "PreTrainedModel":
    """Loads a model whose checkpoint must include the encoder and, with `fitted`, the head."""
    class_names(folder)
    require_unquantized(folder)
    try:
        with _quiet():
            model, report = auto_class.from_pretrained(
                folder,
                **_LOCAL,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                **settings,
            )
    except Exception as error:  # transformers raises many unrelated types for impossible configs, too
        raise _load_error("model", folder, error) from None
    require_finite(model, str(folder), "a checkpoint whose training did not diverge")
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
    if fitted and missing:
        lacking = min(missing, key=lambda n: (n.startswith(f"{model.base_model_prefix}."), n))
        pretrained = auto_class in (AutoModelForMaskedLM, AutoModelForPreTraining)
        raise UserError(
            f"this checkpoint was not trained for the task: it lacks {lacking}",
            where=str(folder),
            instead=f"a checkpoint of a {type(model).__name__}{_OR_TEACHER if pretrained else ''}",
        )
    return model


def require_finite(model: nn.Module, where: str, instead: str) -> None:
    """Checks that no weight of a model is NaN or infinite.

    Args:
        model: The model.
        where: The folder or stage to report in errors.
        instead: What to use or change instead.

    Raises:
        UserError: A weight is not finite.
    """
    broken = [name for name, value in model.named_parameters() if not torch.isfinite(value).all()]
    if broken:
        what = f"{len(broken)} of the model's tensors have weights that are NaN or infinite, e.g. {broken[0]}"
        raise UserError(what, where=where, instead=instead)


def _reorder_outputs(model: "PreTrainedModel", order: Sequence[int]) -> None:
    """Permutes the outputs of a classifier, so that output i is the one that was `order[i]`."""
    inside = {id(module) for module in model.base_model.modules()}
    head = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m) not in inside]
    last = next(m for m in reversed(head) if m.out_features == len(order))
    with torch.no_grad():
        for parameter in filter(lambda p: p is not None, (last.weight, last.bias)):
            parameter.copy_(parameter[list(order)].clone())


def _reset_lengths(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Removes truncation and padding settings, which some checkpoints and every call with a length store."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()


def _load_error(what: str, folder: Path, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(
        f"the {what} cannot be loaded by transformers {transformers.__version__} ({reason})",
        where=str(folder),
        instead="a folder with config.json, model.safetensors and tokenizer.json",
    )
