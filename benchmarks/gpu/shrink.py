"""Makes a small copy of a prepared folder, for the rehearsal: two layers, 128 rows of each task, little text.

python benchmarks/gpu/shrink.py build/gpu build/gpu-rehearsal
"""

import lzma
import sys
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from text import read_text

_ROWS, _LAYERS, _SENTENCES = 128, 2, 20_000


def main(source: Path, out: Path) -> None:
    for folder in ("model", "text"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    dense = load_file(source / "model" / "dense.safetensors")
    names = [n for n in dense if not n.startswith("encoder.layer.") or int(n.split(".")[2]) < _LAYERS]
    save_file({n: dense[n] for n in names}, out / "model" / "dense.safetensors")
    (out / "model" / "config.json").write_text((source / "model" / "config.json").read_text())
    for path in (source / "model").glob("*.npz"):
        found = np.load(path)
        short = path.stem == "valid"
        np.savez_compressed(
            out / "model" / path.name, **{k: v if short else v[:_ROWS] if v.ndim else v for k, v in found.items()}
        )
    ids, lengths = read_text(source / "text" / "train.xz")
    lengths = lengths[:_SENTENCES]
    ids = ids[: int(lengths.astype(np.int64).sum())]
    header = np.array([len(ids), len(lengths)], np.int64).tobytes()
    (out / "text" / "train.xz").write_bytes(lzma.compress(header + ids.tobytes() + lengths.tobytes(), preset=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
