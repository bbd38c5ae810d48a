"""Conversion of a torch model to an OpenVINO IR folder that optimum-intel can load."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def export_ir(model: Any, tokenizer: Any, folder: Path, sample: dict[str, Tensor]) -> None:
    """Writes `openvino_model.xml/.bin`, the config, the tokenizer and the tokenizer's IR.

    Batch size and sequence length are dynamic; FP32 weights are not compressed to FP16.

    Args:
        model: Task model with or without NNCF quantizers; its weights are left unchanged.
        tokenizer: Tokenizer to save next to the model.
        folder: Output folder; created if missing.
        sample: Model inputs, int64 [n, length] each; their names become the names of the IR's inputs.
    """
    import openvino as ov
    from openvino_tokenizers import convert_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    model = model.cpu().eval()
    with traceable_masks(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # its branches depend only on the config
        converted = ov.convert_model(model, example_input=sample)
    converted.reshape({port: ov.PartialShape([-1, -1]) for port in converted.inputs})
    ov.save_model(converted, folder / "openvino_model.xml", compress_to_fp16=False)
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ov.save_model(convert_tokenizer(tokenizer), folder / "openvino_tokenizer.xml")


@contextlib.contextmanager
def traceable_masks() -> Iterator[None]:
    """Replaces transformers' mask construction, which tracing cannot follow, by `attention_mask_of`."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as masks

    def mask(*_: Any, attention_mask: Tensor | None = None, local_size: int | None = None, **__: Any) -> Tensor | None:
        return None if attention_mask is None else attention_mask_of(attention_mask, local_size)

    before = masks["sdpa"]
    masks.register("sdpa", mask)
    try:
        yield
    finally:
        masks.register("sdpa", before)


def attention_mask_of(padding: Tensor, reach: int | None) -> Tensor:
    """Returns which keys a query attends to: bool [n, 1, 1, length], or [n, 1, length, length] with a limited reach.

    A padding token attends to itself too if no token is near: the softmax of nothing is NaN, which would reach tokens.

    Args:
        padding: 1 for tokens, 0 for padding, [n, length].
        reach: Largest distance of a key from its query; None: the queries of a text attend to all of its tokens.
    """
    tokens = padding[:, None, None, :].to(torch.bool)
    if reach is None:
        return tokens
    positions = torch.arange(padding.shape[1], device=padding.device)
    distances = (positions[:, None] - positions[None, :]).abs()[None, None]
    return (tokens & (distances <= reach)) | (distances == 0)
