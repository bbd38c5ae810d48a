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
    """Replaces transformers' mask construction, which tracing cannot follow, by an encoder's plain padding mask."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as masks

    def padding_mask(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> Tensor | None:
        return None if attention_mask is None else attention_mask[:, None, None, :].to(torch.bool)

    before = masks["sdpa"]
    masks.register("sdpa", padding_mask)
    try:
        yield
    finally:
        masks.register("sdpa", before)
