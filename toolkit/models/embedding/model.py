"""Sentence-embedding model: an encoder with pooling and normalisation inside, so that its IR has them too."""

import inspect
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel
from transformers.utils import ModelOutput

from toolkit.models.embedding.folder import SentencePooling


@dataclass
class EmbeddingOutput(ModelOutput):
    """Output of a model: the embedding, and beside it what sentence-transformers pools itself.

    Attributes:
        last_hidden_state: States of the tokens, [n, length, h].
        sentence_embedding: Pooled and, if the model normalises, of length 1, [n, h].
    """

    last_hidden_state: Tensor | None = None
    sentence_embedding: Tensor | None = None


def pooled(states: Tensor, mask: Tensor, pooling: SentencePooling) -> Tensor:
    """Returns the embeddings [n, h] of texts, as sentence-transformers' modules Pooling and Normalize compute them.

    Args:
        states: States of the tokens, [n, length, h].
        mask: 1 for tokens, 0 for padding, [n, length].
        pooling: Pooling and normalisation.
    """
    if pooling.mode == "cls":
        embeddings = states[:, 0]
    else:
        weights = mask.unsqueeze(-1).to(states.dtype)
        embeddings = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
    return F.normalize(embeddings, dim=-1) if pooling.normalize else embeddings


class AutoModelForEmbedding:
    """Loads an embedding model of any architecture, as transformers' AutoModel classes do for their heads."""

    @classmethod
    def from_pretrained(cls, folder: Path, **settings: Any) -> Any:
        """Loads a checkpoint of the encoder, with or without a head.

        Args:
            folder: The checkpoint folder.
            settings: `pooling`, and whatever `PreTrainedModel.from_pretrained` takes.
        """
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return _class_of(AutoModel._model_mapping[type(config)]).from_pretrained(folder, config=config, **settings)

    @classmethod
    def from_config(cls, config: Any) -> Any:
        """Returns a model with random weights."""
        return _class_of(AutoModel._model_mapping[type(config)])(config)


@cache
def _class_of(encoder: Any) -> Any:
    """Returns the class of embedding models around an encoder's class; the encoder has the name that heads give it.

    Names of parameters are therefore the same as in a model with a head, and so are masks and pruned matrices.
    """
    prefix = encoder.base_model_prefix
    without_pooler = "add_pooling_layer" in inspect.signature(encoder.__init__).parameters

    def init(self: Any, config: Any, pooling: SentencePooling = SentencePooling()) -> None:
        super(made, self).__init__(config)
        setattr(self, prefix, encoder(config, add_pooling_layer=False) if without_pooler else encoder(config))
        self.pooling = pooling
        self.post_init()

    def run(self: Any, inputs: dict[str, Tensor | None]) -> EmbeddingOutput:
        states = getattr(self, prefix)(**inputs)[0]
        mask = inputs["attention_mask"]
        mask = torch.ones(states.shape[:2], device=states.device) if mask is None else mask
        return EmbeddingOutput(states, pooled(states, mask, self.pooling))

    # The names of the parameters become those of the IR's inputs.
    def forward(self: Any, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None) -> EmbeddingOutput:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return run(self, inputs)

    def forward_without_types(self: Any, input_ids: Any, attention_mask: Any = None) -> EmbeddingOutput:
        return run(self, {"input_ids": input_ids, "attention_mask": attention_mask})

    has_types = "token_type_ids" in inspect.signature(encoder.forward).parameters
    body = {"__init__": init, "forward": forward if has_types else forward_without_types, "__module__": __name__}
    made: Any = type(f"{encoder.__name__}ForEmbedding", (encoder.__bases__[0],), body)
    return made
