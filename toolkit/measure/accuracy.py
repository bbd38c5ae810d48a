"""What an exported IR itself answers, by OpenVINO alone."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from toolkit.core import machine
from toolkit.core.errors import UserError
from toolkit.core.files import content_hash, json_hash
from toolkit.data.metrics import in_order
from toolkit.ir import kernels

if TYPE_CHECKING:
    import numpy as np

    from toolkit.data.tasks import Split

_SHAPE_PRODUCTS = ("ONEDNN_", "DNNL_", "OV_", "PRUNEOFA_")  # environment variables that change how an IR is computed
_WAY_OF_ASKING = 1  # one more when `predict_ir` asks otherwise than before

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
    compiled = core().compile_model(
        read_ir(folder),
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
        batch = pad_inputs([features[i] for i in chosen], names, pad_id)
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


def cached_predictions(
    folder: Path, examples: "Split", pad_id: int, cache: Path, properties: Mapping[str, str] | None = None
) -> "Sequence[np.ndarray]":
    """What `predict_ir` finds, asked once: several checks and measurements look at the same answers.

    They are of the same IR, to the same inputs, by the same OpenVINO on a CPU like this one, or they are asked anew.

    Args:
        folder: As of `predict_ir`.
        examples: As of `predict_ir`.
        pad_id: As of `predict_ir`.
        cache: Where answers lie, each in a file of its own.
        properties: As of `predict_ir`.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save_file

    from toolkit.data.tasks import fingerprint
    from toolkit.ir.runtime import is_engine

    here = machine.describe()
    asked = {
        "way": _WAY_OF_ASKING,
        "ir": content_hash(folder),
        "kernel": kernels.folder().name if is_engine(folder) else None,
        "examples": fingerprint(examples),
        "pad_id": pad_id,
        "properties": dict(properties or {}),
        "openvino": machine.versions()["openvino"],
        "cpu": [here["cpu"], here["isa"]],
        "environment": {k: v for k, v in os.environ.items() if k.startswith(_SHAPE_PRODUCTS)},
    }
    file = cache / f"answers-{json_hash(asked)[:16]}.safetensors"
    try:
        ((kind, found),) = load_file(file).items()
    except (FileNotFoundError, SafetensorError):  # not asked yet, or a damaged disk
        logits = predict_ir(folder, examples, pad_id, properties=properties)
        kind = "examples" if isinstance(logits, np.ndarray) else "windows"
        found = np.ascontiguousarray(logits if kind == "examples" else np.concatenate(logits, axis=1))
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file({kind: found}, partial)
        partial.replace(file)
    if kind == "examples":
        return list(found)
    ends = np.cumsum(examples.lengths)
    return [found[:, end - length : end] for end, length in zip(ends, examples.lengths, strict=True)]


def pad_inputs(
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
