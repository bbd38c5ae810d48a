"""Predictions of an exported IR, computed with OpenVINO alone, and their cache."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from toolkit.core import machine
from toolkit.core.artifacts import artifact_hash
from toolkit.core.errors import UserError
from toolkit.core.files import json_hash
from toolkit.data.metrics import in_order
from toolkit.ir import kernels

if TYPE_CHECKING:
    import numpy as np

    from toolkit.data.tasks import Split

# Prefixes of environment variables that change how an IR is computed.
_RUNTIME_VARIABLES = ("ONEDNN_", "DNNL_", "OV_", "PRUNEOFA_")
_PREDICTION_VERSION = 1  # increased whenever a change of `predict_ir` can change the logits

_EMBEDDING = "sentence_embedding"  # output of an embedding model
# Tokenizer features and their padding values (None: the tokenizer's padding id).
FEATURES: dict[str, int | None] = {"input_ids": None, "attention_mask": 0, "token_type_ids": 0}


class Examples(Protocol):
    """Tokenised examples by index, each a dict of lists of ids."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Mapping[str, Sequence[int]]: ...


def predict_ir(
    folder: Path,
    examples: Examples,
    pad_id: int,
    batch_size: int = 32,
    properties: Mapping[str, str] | None = None,
    *,
    per_token: bool,
) -> "Sequence[np.ndarray]":
    """Returns the logits of ALL examples, in their order: [n, C], or [C, length] per window of kinds per token.

    Examples are batched by length and padded to the longest of the batch. FP32 models run in FP32 even on CPUs that
    default to bfloat16, so that model formats are compared rather than CPU defaults.

    Args:
        folder: IR folder with `openvino_model.xml` of dynamic batch size and length.
        examples: Tokenised examples, at least one.
        pad_id: The tokenizer's padding id.
        batch_size: Examples per inference.
        properties: OpenVINO properties of the compiled model, in addition to its precision.
        per_token: Whether the logits of one example are [C, length] rather than [C].

    Raises:
        UserError: OpenVINO returns fewer rows than the batch has.
    """
    import numpy as np

    from toolkit.ir.runtime import core, read_ir

    assert len(examples), "an empty split is refused when a task is loaded"
    compiled = core().compile_model(
        read_ir(folder),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"} | dict(properties or {}),
    )
    names = input_names(compiled, folder)
    request = compiled.create_infer_request()
    features = [examples[i] for i in range(len(examples))]
    order = sorted(range(len(features)), key=lambda i: len(features[i]["input_ids"]))
    logits: list[np.ndarray] = []
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = pad_inputs([features[i] for i in chosen], names, pad_id)
        results = request.infer(batch)
        # A classifier has one output; question answering has start logits, then end logits; an embedding model its
        # tokens' states beside the embedding, for libraries that pool themselves.
        ports = [port for port in compiled.outputs if _EMBEDDING in port.get_names()] or compiled.outputs
        outputs = [results[port] for port in ports]
        rows = outputs[0] if len(outputs) == 1 else np.stack(outputs, axis=1)
        if per_token and len(outputs) == 1:  # token classification: [n, length, C]
            rows = rows.transpose(0, 2, 1)
        if len(rows) != len(chosen):  # seen with dynamic quantization on a CPU limited to AVX2
            raise UserError(
                f"OpenVINO returned {len(rows)} rows for a batch of {len(chosen)}",
                where=str(folder),
                instead="a quantization.approach other than post_training_dynamic_quant on this CPU",
            )
        logits += list(rows.copy())
    return in_order(logits, order, [len(f["input_ids"]) for f in features], per_token)


def cached_predictions(
    folder: Path, examples: "Split", pad_id: int, cache: Path, properties: Mapping[str, str] | None = None
) -> "Sequence[np.ndarray]":
    """Returns the logits of `predict_ir`, cached on disk because several checks and measurements need them.

    A cached result is used only for the same IR and inputs, the same OpenVINO and kernels, and the same kind of CPU.

    Args:
        folder: IR folder with `openvino_model.xml` of dynamic batch size and length.
        examples: Tokenised split with at least one example.
        pad_id: The tokenizer's padding id.
        cache: Cache folder with one file per result.
        properties: OpenVINO properties of the compiled model, in addition to its precision.

    Raises:
        UserError: OpenVINO returns fewer rows than a batch has.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save_file

    from toolkit.data.task_kinds import fingerprint
    from toolkit.ir.runtime import is_engine

    here = machine.describe()
    key = {
        "way": _PREDICTION_VERSION,
        "ir": artifact_hash("ir", folder),
        "kernel": kernels.folder().name if is_engine(folder) else None,
        "examples": fingerprint(examples),
        "pad_id": pad_id,
        "properties": dict(properties or {}),
        "openvino": machine.versions()["openvino"],
        "cpu": [here["cpu"], here["isa"]],
        "environment": {k: v for k, v in os.environ.items() if k.startswith(_RUNTIME_VARIABLES)},
    }
    file = cache / f"answers-{json_hash(key)[:16]}.safetensors"
    try:
        ((kind, found),) = load_file(file).items()
    except (FileNotFoundError, SafetensorError):  # not cached yet, or the file is corrupt
        logits = predict_ir(folder, examples, pad_id, properties=properties, per_token=examples.per_token)
        kind = "windows" if examples.per_token else "examples"
        found = np.ascontiguousarray(logits if kind == "examples" else np.concatenate(logits, axis=1))
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file({kind: found}, partial)
        partial.replace(file)
    if kind == "examples":
        return list(found)
    ends = np.cumsum(examples.lengths)
    return [found[:, end - length : end] for end, length in zip(ends, examples.lengths, strict=True)]


def input_names(model: Any, folder: Path) -> list[str]:
    """Returns the names of a model's inputs as a tokenizer has them, in the order of the inputs.

    An input can have several names, such as `attention_mask` and `7`: those of the operations that optimizations
    removed. `get_any_name` returns any of them.

    Args:
        model: The `openvino.Model` or `CompiledModel`.
        folder: The IR folder to report in errors.

    Raises:
        UserError: An input is not one that a tokenizer provides.
    """
    from toolkit.ir.runtime import ir_file

    names = []
    for port in model.inputs:
        known = FEATURES.keys() & port.get_names()
        if not known:
            raise UserError(
                f"the IR has an input {' or '.join(sorted(port.get_names())) or 'without a name'}",
                where=str(ir_file(folder)),
                instead=f"an IR whose inputs are among {', '.join(FEATURES)}",
            )
        names.append(min(known))
    return names


def pad_inputs(
    features: Sequence[Mapping[str, Sequence[int]]], names: Sequence[str], pad_id: int, length: int | None = None
) -> "dict[str, np.ndarray]":
    """Returns padded model inputs, by name, as int64 arrays [examples, length].

    Args:
        features: Tokenised examples; a missing feature (`token_type_ids`) is filled with padding.
        names: Names of the model's inputs, all of them in `FEATURES`.
        pad_id: The tokenizer's padding id.
        length: Tokens per example, longer examples are truncated; None: the longest example's length.
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
