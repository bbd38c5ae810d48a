"""What a checkpoint folder holds, from its files alone: shapes, zeros, whether others quantized it. Loads no torch."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from toolkit.core.errors import UserError
from toolkit.models.architectures import encoder_prefix, is_in_layer

MIN_SPARSITY = 0.01  # a model with a smaller share of zeros was never pruned
_BARE = ("encoder.", "transformer.", "embeddings.", "pooler.")  # names in an encoder that was saved without a head
# Element type in safetensors -> bytes, and the bits that are clear in a zero (a sign does not count).
_FLOATS = {"F64": (8, 0x7FFF_FFFF_FFFF_FFFF), "F32": (4, 0x7FFF_FFFF), "F16": (2, 0x7FFF), "BF16": (2, 0x7FFF)}
# Tensors that only quantizers leave behind, in the names of torch, INC, NNCF, compressed-tensors and GPTQ.
_QUANTIZERS = re.compile(
    r"(_packed_params|\.weight_scale|\.weight_zero_point|\.(input|output)_scale|\.q(weight|zeros)"
    r"|fake_quant|__nncf_hooks|\.weight_packed|\.(scale|zero_point)$|_scale_param_storage)"
)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file: element type, shape, and where its bytes lie in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def encoder_matrices(folder: Path) -> dict[str, tuple[int, int]]:
    """The matrices of the encoder's layers: name -> [rows, columns].

    Raises:
        UserError: As `tensors`.
    """
    found = stored_tensors(folder).items()
    return {name: (t.shape[0], t.shape[1]) for name, t in found if len(t.shape) == 2 and is_in_layer(name)}


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint, from the headers of its safetensors files.

    The names are those in training: `bert.encoder…` also where a bare encoder was saved as `encoder…`.

    Raises:
        UserError: There is no safetensors file, or its header cannot be read.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise _no_weights(folder)
    found: dict[str, StoredTensor] = {}
    prefix = encoder_prefix(folder)
    for path in files:
        try:
            with path.open("rb") as stream:
                size = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(size))
            for name, entry in header.items():
                if name != "__metadata__":
                    start, stop = (size + 8 + int(offset) for offset in entry["data_offsets"])
                    found[f"{prefix}{name}" if name.startswith(_BARE) else name] = StoredTensor(
                        path, str(entry["dtype"]), tuple(entry["shape"]), start, stop
                    )
        except (ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError):
            raise UserError("not a whole safetensors file", where=str(path), instead="a fresh copy of it") from None
    return found


def require_unquantized(folder: Path) -> None:
    """Refuses a checkpoint that is not plain floating-point weights in safetensors.

    Raises:
        UserError: Somebody quantized it, or its weights are pickled.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        config = {}  # told by those who need it
    method = (config.get("quantization_config") or {}) if isinstance(config, dict) else {}
    if method:
        name = method.get("quant_method") or method.get("format") or "quantization_config in its config.json"
        raise _quantized(folder, f"it was quantized already ({name})")
    found = stored_tensors(folder)
    marks = [name for name in found if _QUANTIZERS.search(name)]
    if marks:
        raise _quantized(folder, f"it was quantized already: it holds {marks[0]!r}")
    coded = [n for n, t in found.items() if t.dtype not in _FLOATS and n.endswith("weight") and len(t.shape) == 2]
    if coded:
        raise _quantized(folder, f"it was quantized already: {coded[0]} is {found[coded[0]].dtype}")


def require_length(length: int, limit: int | None, where: str, key: str = "max_seq_length") -> None:
    """Refuses a length that is more than the positions of a model; None: they are not known.

    Raises:
        UserError: It is.
    """
    if limit is not None and length > limit:
        what = f"{key} {length} is more than the model's {limit} positions"
        raise UserError(what, where=where, instead=f"{key}: {limit}")


def sparsity_by_tensor(folder: Path, names: Iterable[str]) -> dict[str, float]:
    """Share of weights that are exactly zero in each of these tensors.

    Raises:
        UserError: A file is shorter than its header says.
    """
    import numpy as np

    found, shares = stored_tensors(folder), {}
    for name in names:
        tensor = found[name]
        size, bits = _FLOATS[tensor.dtype]
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.start)
            data = stream.read(tensor.stop - tensor.start)
        if len(data) != size * math.prod(tensor.shape):
            raise UserError("not a whole safetensors file", where=str(tensor.file), instead="a fresh copy of it")
        values = np.frombuffer(data, dtype=f"<u{size}")
        shares[name] = 1.0 - int(np.count_nonzero(values & np.array(bits, values.dtype))) / max(1, values.size)
    return shares


def _no_weights(folder: Path) -> UserError:
    pickled = [p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt") and p.is_file()]
    if (folder / "quantized.safetensors").is_file():
        return _quantized(folder, "it was quantized by this toolkit")
    if pickled:
        return UserError(
            f"{pickled[0]} is a pickle, which can run any code when it is opened: it is not read",
            where=str(folder),
            instead="where you trust it, save it anew with transformers' save_pretrained: it writes safetensors",
        )
    return UserError(
        "no model.safetensors in this folder",
        where=str(folder),
        instead="a safetensors checkpoint; of a model on the hub often its revision owner/name@refs/pr/1",
    )


def _quantized(folder: Path, what: str) -> UserError:
    return UserError(
        f"this checkpoint cannot be a start: {what}",
        where=str(folder),
        instead="the floating-point checkpoint that it was made from; quantization is the `quantize` stage",
    )
