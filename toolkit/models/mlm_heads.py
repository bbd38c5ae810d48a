"""Masked-LM heads of all architectures, and BERT's next-sentence head."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.core.errors import UserError
from toolkit.models.architectures import require_mlm_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class VocabularyHead:
    """Head of a masked LM: last hidden states [n, h] -> vocabulary logits [n, V].

    Attributes:
        transform: The head without its last layer, [n, h] -> [n, e].
        decoder: The last layer, tied to the word embeddings, [n, e] -> [n, V].
    """

    transform: Callable[[Tensor], Tensor]
    decoder: nn.Linear

    def __call__(self, hidden: Tensor) -> Tensor:
        """Returns the logits [n, V] of the hidden states [n, h]."""
        logits: Tensor = self.decoder(self.transform(hidden))
        return logits


# Attribute of a masked language model (`Architecture.mlm_head`) -> its head.
MLM_HEADS: dict[str, Callable[[Any], VocabularyHead]] = {
    "cls": lambda model: VocabularyHead(model.cls.predictions.transform, model.cls.predictions.decoder),  # BERT
    "lm_head": lambda model: VocabularyHead(
        lambda hidden: model.lm_head.layer_norm(F.gelu(model.lm_head.dense(hidden))), model.lm_head.decoder
    ),  # RoBERTa
    "predictions": lambda model: VocabularyHead(
        lambda hidden: model.predictions.LayerNorm(model.predictions.activation(model.predictions.dense(hidden))),
        model.predictions.decoder,
    ),  # ALBERT
    "generator_lm_head": lambda model: VocabularyHead(model.generator_predictions, model.generator_lm_head),  # ELECTRA
    "vocab_projector": lambda model: VocabularyHead(
        lambda hidden: model.vocab_layer_norm(model.activation(model.vocab_transform(hidden))), model.vocab_projector
    ),  # DistilBERT
    "decoder": lambda model: VocabularyHead(model.head, model.decoder),  # ModernBERT
}


def mlm_head(model: "PreTrainedModel") -> VocabularyHead:
    """Returns the head of a masked LM.

    Raises:
        UserError: The architecture's head is not supported.
    """
    attribute = require_mlm_head(model.config.model_type)
    if not hasattr(model, attribute):  # DeBERTa has heads of two forms, by a key of its config
        raise UserError(f"the masked-LM head of this {type(model).__name__} is not supported", where="model.source")
    return MLM_HEADS[attribute](model)


def next_sentence_head(model: Any) -> Callable[[Tensor], Tensor]:
    """Returns the next-sentence head: pooled output [n, h] -> logits [n, 2]; class 1 is a random next segment."""
    head: Callable[[Tensor], Tensor] = model.cls.seq_relationship
    return head
