"""What an exported IR itself answers, by OpenVINO alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from toolkit.errors import UserError
from toolkit.metrics import in_order

if TYPE_CHECKING:
    import numpy as np

# The features that a tokenizer makes, and what each is padded with (None: the tokenizer's own padding id).
FEATURES: dict[str, int | None] = {"input_ids": None, "attention_mask": 0, "token_type_ids": 0}


class Examples(Protocol):
    """What is read of a split: tokenised examples by index, each a dict of lists of ids."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Mapping[str, Sequence[int]]: ...


def predict_ir(
    folder: Path,
    examples: Examples,
    pad_id: int,
    batch_size: int = 32,
    properties: Mapping[str, str] | None = None,
) -> "Sequence[np.ndarray]":
    """Logits of ALL examples, in their order: [n, C]; or [2, length] for each window of question answering.

    Examples of like length share a batch, which is padded to its longest one. Products are computed in FP32 where
    the model is FP32, also on CPUs that would pick bfloat16 by themselves: formats are compared, not CPU defaults.

    Args:
        folder: Holds `openvino_model.xml` with dynamic batch and length.
        examples: At least one.
        pad_id: Id that fills up `input_ids`.
        batch_size: Examples per inference.
        properties: Of the compiled model, besides its precision.

    Raises:
        UserError: OpenVINO answers fewer examples than it was asked.
    """
    import numpy as np

    from toolkit.ir.runtime import core, read_ir

    assert len(examples), "an empty split is refused when a task is loaded"
    openvino = core()
    compiled = openvino.compile_model(
        read_ir(folder, openvino),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"} | dict(properties or {}),
    )
    names = [port.get_any_name() for port in compiled.inputs]
    request = compiled.create_infer_request()
    features = [examples[i] for i in range(len(examples))]
    order = sorted(range(len(features)), key=lambda i: len(features[i]["input_ids"]))
    logits: list[np.ndarray] = []
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = padded([features[i] for i in chosen], names, pad_id)
        answer = request.infer(batch)
        # One output of a classifier; of question answering the logits of starts, then those of ends.
        outputs = [answer[port] for port in compiled.outputs]
        rows = outputs[0] if len(outputs) == 1 else np.stack(outputs, axis=1)
        if len(rows) != len(chosen):  # seen with activations quantized at run time on a CPU held to AVX2
            raise UserError(
                f"OpenVINO answered {len(rows)} of {len(chosen)} examples",
                where=str(folder),
                instead="another quantization.approach than post_training_dynamic_quant on this CPU",
            )
        logits += list(rows.copy())
    return in_order(logits, order, [len(f["input_ids"]) for f in features])


def padded(
    features: Sequence[Mapping[str, Sequence[int]]], names: Sequence[str], pad_id: int, length: int | None = None
) -> "dict[str, np.ndarray]":
    """The inputs `names` of a model as int64 arrays [examples, length].

    Args:
        features: Tokenised examples; a feature that an example lacks is all padding (`token_type_ids`).
        names: Inputs of the model, all of them in `FEATURES`.
        pad_id: Id that fills up `input_ids`.
        length: Tokens per example, longer ones are cut; None: those of the longest.
    """
    import numpy as np

    width = length or max(len(f["input_ids"]) for f in features)
    arrays = {}
    for name in names:
        filler = FEATURES[name]
        array = np.full((len(features), width), pad_id if filler is None else filler, np.int64)
        for row, feature in zip(array, features, strict=True):
            ids = feature.get(name, ())[:width]
            row[: len(ids)] = ids
        arrays[name] = array
    return arrays
