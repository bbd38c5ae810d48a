"""Makes a small copy of a prepared folder, for the rehearsal: two layers, 128 rows of each task, little text.

python benchmarks/gpu/shrink.py build/gpu build/gpu-rehearsal
"""

import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from text import read_text, write_text

_ROWS, _LAYERS, _SENTENCES = 128, 2, 20_000


def main(source: Path, out: Path) -> None:
    for folder in ("model", "text"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    dense = load_file(source / "model" / "dense.safetensors")
    names = [n for n in dense if not n.startswith("encoder.layer.") or int(n.split(".")[2]) < _LAYERS]
    save_file({n: dense[n] for n in names}, out / "model" / "dense.safetensors")
    (out / "model" / "config.json").write_text((source / "model" / "config.json").read_text())
    shutil.copy(source / "model" / "valid.xz", out / "model")
    for path in (source / "model").glob("*.npz"):
        arrays = {name: array[:_ROWS] if array.ndim else array for name, array in np.load(path).items()}
        np.savez_compressed(out / "model" / path.name, **arrays)
    ids, lengths = read_text(source / "text" / "train.xz")
    lengths = lengths[:_SENTENCES]
    write_text(out / "text" / "train.xz", ids[: int(lengths.astype(np.int64).sum())], lengths)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
