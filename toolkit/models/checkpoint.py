"""Checkpoint inspection without loading the model: shapes, zeros, signs of quantization. Does not import torch."""

import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic_core import from_json
from safetensors import SafetensorError, safe_open

from toolkit.core.errors import UserError
from toolkit.core.files import read_json, require_regular
from toolkit.models.architectures import BARE_ENCODER, encoder_prefix, is_in_layer
from toolkit.models.config import read_config

if TYPE_CHECKING:
    import numpy as np

MIN_SPARSITY = 0.01  # a model with a smaller fraction of zeros was never pruned
# safetensors dtype -> bytes, and the bits that are all 0 in +0.0 and -0.0 (all but the sign).
_FLOATS = {"F64": (8, 0x7FFF_FFFF_FFFF_FFFF), "F32": (4, 0x7FFF_FFFF), "F16": (2, 0x7FFF), "BF16": (2, 0x7FFF)}
# safetensors dtype -> the bits of the exponent.
_EXPONENTS = {"F64": 0x7FF0_0000_0000_0000, "F32": 0x7F80_0000, "F16": 0x7C00, "BF16": 0x7F80}
_SIDES = (32, 16, 8, 4, 2, 1)  # of the blocks of zeros that are looked for
_FILLED = 0.01  # fraction of zeros that blocks which are kept may contain
_PIECE = 1 << 22  # weights that are checked at a time
# Names of tensors that only quantized models have, as saved by torch, INC, NNCF, compressed-tensors and GPTQ.
_QUANTIZERS = re.compile(
    r"(_packed_params|\.weight_scale|\.weight_zero_point|\.(input|output)_scale|\.q(weight|zeros)"
    r"|fake_quant|__nncf_hooks|\.weight_packed|\.(scale|zero_point)$|_scale_param_storage)"
)


@dataclass(frozen=True)
class StoredTensor:
    """Location and type of a tensor in a safetensors file.

    Attributes:
        file: The safetensors file.
        dtype: Element type as safetensors names it, such as F32.
        shape: Shape of the tensor.
        start: Offset of its first byte in the file.
        stop: Offset after its last byte.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def encoder_matrices(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns parameter name -> (rows, columns) of the matrices in the encoder's layers.

    Raises:
        UserError: There is no safetensors file, or its header cannot be read.
    """
    found = stored_tensors(folder).items()
    return {name: (t.shape[0], t.shape[1]) for name, t in found if len(t.shape) == 2 and is_in_layer(name)}


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Returns all tensors of a checkpoint by name, from the headers of its safetensors files.

    The names are those of a model with a head: `bert.encoder…` even if a bare encoder was saved as `encoder…`.

    Raises:
        UserError: There is no safetensors file, or its header cannot be read.
    """
    found: dict[str, StoredTensor] = {}
    prefix = encoder_prefix(folder)
    for path in weight_files(folder):
        for name, tensor in tensors_of_file(path).items():
            found[f"{prefix}{name}" if name.startswith(BARE_ENCODER) else name] = tensor
    return found


def tensors_of_file(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a safetensors file by their stored names, from its header.

    Raises:
        UserError: The file cannot be read, or is damaged.
    """
    try:
        with safe_open(path, framework="np"), path.open("rb") as stream:  # safetensors checks the complete header
            size = int.from_bytes(stream.read(8), "little")
            header = from_json(stream.read(size))
    except (SafetensorError, OSError, ValueError):
        raise _damaged(path) from None
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(path, entry["dtype"], tuple(entry["shape"]), *(size + 8 + n for n in entry["data_offsets"]))
        for name, entry in header.items()
    }


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files of a checkpoint: one, or those that its index names, in this folder.

    Raises:
        UserError: There is none, the index names others, or a file is not a regular one.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if index.exists():
        values = read_json(index)
        shards = values.get("weight_map") if isinstance(values, dict) else None
        names = set(shards.values()) if isinstance(shards, dict) and all(map(_is_shard, shards.values())) else None
        if not names:
            raise UserError(
                "the index does not map each tensor to a safetensors file of this folder",
                where=str(index),
                instead="the index that was saved with these weights",
            )
        files = [folder / name for name in sorted(names)]
    else:
        files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise _no_weights(folder)
    for file in files:
        require_regular(file)
    return files


def _is_shard(name: object) -> bool:
    """Returns whether an entry of an index is the name of a safetensors file, not a path."""
    return isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) is not None


def require_unquantized(folder: Path) -> None:
    """Checks that a checkpoint consists of plain floating-point weights in safetensors.

    Raises:
        UserError: The checkpoint is quantized, or its weights are pickled or missing.
    """
    if method := read_config(folder).get("quantization_config"):
        name = method.get("quant_method") or method.get("format") or "quantization_config in its config.json"
        raise _quantized(folder, f"it is already quantized ({name})")
    found = stored_tensors(folder)
    marks = [name for name in found if _QUANTIZERS.search(name)]
    if marks:
        raise _quantized(folder, f"it is already quantized: it contains {marks[0]!r}")
    coded = [n for n, t in found.items() if t.dtype not in _FLOATS and n.endswith("weight") and len(t.shape) == 2]
    if coded:
        raise _quantized(folder, f"it is already quantized: {coded[0]} is {found[coded[0]].dtype}")


def require_length(length: int, limit: int | None, where: str, key: str = "max_seq_length") -> None:
    """Checks a sequence length against the number of positions of a model.

    Args:
        length: The sequence length in tokens.
        limit: The model's number of positions; None if it is not known.
        where: The recipe or file to report in errors.
        key: The setting that holds the length.

    Raises:
        UserError: The length exceeds the limit.
    """
    if limit is not None and length > limit:
        what = f"{key} {length} is more than the model's {limit} positions"
        raise UserError(what, where=where, instead=f"{key}: {limit}")


def require_finite_weights(folder: Path) -> None:
    """Checks that no weight of a checkpoint is NaN or infinite: in both, all bits of the exponent are 1.

    Raises:
        UserError: A weight is not finite, or a file is shorter than its header states.
    """
    import numpy as np

    broken = []
    for name, tensor in stored_tensors(folder).items():
        if tensor.dtype not in _EXPONENTS or tensor.start == tensor.stop:
            continue
        (size, _), exponent = _FLOATS[tensor.dtype], _EXPONENTS[tensor.dtype]
        try:
            count = (tensor.stop - tensor.start) // size
            bits = np.memmap(tensor.file, f"<u{size}", "r", tensor.start, (count,))
        except ValueError:
            raise _damaged(tensor.file) from None
        if any((bits[at : at + _PIECE] & exponent == exponent).any() for at in range(0, count, _PIECE)):
            broken.append(name)
    if broken:
        what = f"{len(broken)} of the model's tensors have weights that are NaN or infinite, e.g. {broken[0]}"
        raise UserError(what, where=str(folder), instead="a checkpoint whose training did not diverge")


def sparsity_by_tensor(folder: Path, names: Iterable[str]) -> dict[str, float]:
    """Returns tensor name -> fraction of weights that are exactly zero.

    Raises:
        UserError: A file is shorter than its header states.
    """
    found = stored_tensors(folder)
    zeros = {name: zero_weights(found[name]) for name in names}
    return {name: float(zero.mean()) if zero.size else 0.0 for name, zero in zeros.items()}


def zero_blocks(folder: Path, names: Iterable[str]) -> str:
    """Returns the largest blocks, rows x columns, in which the zeros of all these matrices come; `1x1`: single zeros.

    Up to 1 % of the weights that the blocks keep may be zero, too.

    Raises:
        UserError: A file is shorter than its header states.
    """
    found, sizes = stored_tensors(folder), sorted(itertools.product(_SIDES, _SIDES), key=math.prod, reverse=True)
    for name in names:
        kept = ~zero_weights(found[name])
        sizes = [size for size in sizes if _in_blocks(kept, *size)]
    return "{}x{}".format(*sizes[0])


def _in_blocks(kept: "np.ndarray", rows: int, columns: int) -> bool:
    if rows == columns == 1:
        return True
    if kept.shape[0] % rows or kept.shape[1] % columns:
        return False
    blocks = kept.reshape(kept.shape[0] // rows, rows, kept.shape[1] // columns, columns).any(axis=(1, 3))
    return bool(rows * columns * blocks.sum() <= (1 + _FILLED) * kept.sum())


def zero_weights(tensor: StoredTensor) -> "np.ndarray":
    """Returns a bool array of a tensor's shape, True where a weight is exactly zero.

    Raises:
        UserError: The file is shorter than its header states, or the tensor's type is not a plain float.
    """
    import numpy as np

    if tensor.dtype not in _FLOATS:
        what = f"the zeros of {tensor.dtype} tensors cannot be counted"
        raise UserError(what, where=str(tensor.file), instead=f"one of {', '.join(_FLOATS)}")
    size, bits = _FLOATS[tensor.dtype]
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        data = stream.read(tensor.stop - tensor.start)
    if len(data) != size * math.prod(tensor.shape):
        raise _damaged(tensor.file)
    zero: np.ndarray = np.frombuffer(data, dtype=f"<u{size}") & bits == 0
    return zero.reshape(tensor.shape)


def _damaged(path: Path) -> UserError:
    return UserError("damaged or incomplete safetensors file", where=str(path), instead="copy or download it again")


def _no_weights(folder: Path) -> UserError:
    pickled = [p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt") and p.is_file()]
    if (folder / "quantized.safetensors").is_file():
        return _quantized(folder, "it was quantized by this toolkit")
    if pickled:
        return UserError(
            f"{pickled[0]} is a pickle file, which can run arbitrary code when it is loaded, so it is not opened",
            where=str(folder),
            instead="if you trust the file, convert it with transformers' save_pretrained, which writes safetensors",
        )
    return UserError(
        "no model.safetensors in this folder",
        where=str(folder),
        instead="a safetensors checkpoint; for models on the hub, often the revision owner/name@refs/pr/1",
    )


def _quantized(folder: Path, what: str) -> UserError:
    return UserError(
        f"this checkpoint cannot be used as input: {what}",
        where=str(folder),
        instead="the floating-point checkpoint that it was made from; the `quantize` stage quantizes it",
    )
