"""Model size under every definition in use; a ratio such as "40x" is meaningless without its definition.

Scales of 8-bit weights (4 bytes per row, or per matrix) are counted in file sizes only.
"""

import math
import tempfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.core.files import PAPERS
from toolkit.ir import bundle
from toolkit.models.checkpoint import weight_files

FP32_BYTES, INT8_BYTES = 4, 1

FILE = "file: .bin as it is"
GZIP = "file: .bin, gzip -6"
BUNDLE = "file: all that is shipped, pruneofa pack"
VALUES = "encoder: kept values only (the paper's definition)"
ENTROPY = "encoder: kept values + entropy of the mask (a bound)"
INDEXED = "encoder: kept values + 1 byte of index each"
MASKED = "encoder: kept values + 1-bit mask"
WHOLE_INT8 = "whole model: encoder with 1-bit mask, embeddings 8-bit, rest FP32"
WHOLE_FP32 = "whole model: encoder with 1-bit mask, rest FP32"
PLAIN = "whole model: encoder with its zeros, rest FP32"


@dataclass(frozen=True)
class Matrix:
    """A prunable matrix.

    Attributes:
        weights: Number of weights.
        kept: Number of weights that the pattern keeps.
        name: Parameter name.
    """

    weights: int
    kept: int
    name: str = ""

    def mask_entropy(self) -> float:
        """Returns the entropy of the mask in bits, weights * H(kept / weights): a lower bound for coding it."""
        fractions = (self.kept / self.weights, 1 - self.kept / self.weights)
        return -self.weights * sum(p * math.log2(p) for p in fractions if p > 0)


@dataclass(frozen=True)
class Footprint:
    """Parameter counts from which a model's sizes are computed.

    Attributes:
        matrices: The encoder's prunable matrices.
        embeddings: Number of weights in embedding tables.
        other: Number of all remaining parameters: biases, LayerNorm, pooler, head.
    """

    matrices: tuple[Matrix, ...]
    embeddings: int
    other: int

    @property
    def encoder(self) -> int:
        """Number of weights in the prunable matrices, including zeros."""
        return sum(m.weights for m in self.matrices)

    def reference(self) -> dict[str, int]:
        """Returns the bytes of the dense FP32 model, the reference for compression ratios."""
        whole = self.encoder + self.embeddings + self.other
        return {"encoder": FP32_BYTES * self.encoder, "whole model": FP32_BYTES * whole}

    def sizes(
        self, *, value_bytes: int, sparse: bool, fp32: Collection[str] = (), int8_embeddings: bool = True
    ) -> dict[str, int]:
        """Returns the bytes under each definition. A dense model has no mask and keeps all values.

        Args:
            value_bytes: Bytes of one encoder weight, `FP32_BYTES` or `INT8_BYTES`.
            sparse: Whether the sparsity pattern applies.
            fp32: Names of matrices stored in FP32 regardless of `value_bytes`.
            int8_embeddings: Whether an 8-bit model has 8-bit embeddings.
        """
        bytes_ = [FP32_BYTES if m.name in fp32 else value_bytes for m in self.matrices]
        kept = sum(m.kept for m in self.matrices) if sparse else self.encoder
        values = sum((m.kept if sparse else m.weights) * b for m, b in zip(self.matrices, bytes_, strict=True))
        mask = math.ceil(self.encoder / 8) if sparse else 0
        rest = FP32_BYTES * (self.embeddings + self.other)
        sizes = {VALUES: values}
        if sparse:
            sizes[ENTROPY] = values + math.ceil(sum(m.mask_entropy() for m in self.matrices) / 8)
            sizes[INDEXED] = values + kept
        sizes[MASKED] = values + mask
        if value_bytes == INT8_BYTES and int8_embeddings:
            sizes[WHOLE_INT8] = values + mask + INT8_BYTES * self.embeddings + FP32_BYTES * self.other
        sizes[WHOLE_FP32] = values + mask + rest
        sizes[PLAIN] = sum(m.weights * b for m, b in zip(self.matrices, bytes_, strict=True)) + rest
        return sizes


def count_weights(checkpoint: Path, kept: Mapping[str, int]) -> Footprint:
    """Counts the parameters of a Hugging Face checkpoint from its tensor shapes, without reading values.

    Args:
        checkpoint: Folder with `model*.safetensors`.
        kept: Number of weights that the pattern keeps, by name of the prunable matrix; all must be in the checkpoint.
    """
    from safetensors import safe_open

    matrices, embeddings, other = [], 0, 0
    for file in weight_files(checkpoint):
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                view = tensors.get_slice(name)
                size = math.prod(view.get_shape())
                if name in kept:
                    matrices.append(Matrix(size, kept[name], name))
                elif name.endswith("embeddings.weight"):
                    embeddings += size
                elif "F" in view.get_dtype():  # integer buffers (position_ids) are not parameters
                    other += size
    assert len(matrices) == len(kept), f"{checkpoint}: {len(kept)} matrices in the mask, {len(matrices)} found"
    return Footprint(tuple(matrices), embeddings, other)


def file_sizes(ir: Path) -> dict[str, int]:
    """Returns the bytes of an IR folder's weights file, uncompressed and gzipped, and of the folder as a bundle.

    The card and the manifest beside an IR, which change when more is measured, are not counted.
    """
    path = ir / "openvino_model.bin"
    coder, compressed = zlib.compressobj(level=6, wbits=31), 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            compressed += len(coder.compress(block))
    with tempfile.TemporaryDirectory() as scratch:
        packed = bundle.pack(ir, Path(scratch) / f"bundle{bundle.SUFFIX}", without=PAPERS)
    return {FILE: path.stat().st_size, GZIP: compressed + len(coder.flush()), BUNDLE: packed}
