"""How much memory there is, and how much a process needs to load an IR and run it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolkit.core.errors import UserError
from toolkit.ir.runtime import needed_extension

_SCRIPT = """
import json, sys
import numpy as np, openvino
inputs = {name: np.array(rows, dtype=np.int64) for name, rows in json.load(sys.stdin).items()}
core = openvino.Core()
for extension in sys.argv[2:]:
    core.add_extension(extension)
model = core.compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
model({port.get_any_name(): inputs[port.get_any_name()] for port in model.inputs})
lines = open("/proc/self/status").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""


def peak_memory(folder: Path, inputs: Mapping[str, Sequence[Sequence[int]]]) -> int:
    """Peak resident memory of a fresh Python process that compiles an IR and runs it once; the interpreter included.

    Args:
        folder: Holds `openvino_model.xml`.
        inputs: Model inputs, [n, length] ids each.

    Raises:
        UserError: OpenVINO cannot run it.
    """
    extension = needed_extension(folder)
    result = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(folder / "openvino_model.xml"), *([str(extension)] if extension else [])],
        input=json.dumps({name: [list(map(int, row)) for row in rows] for name, rows in inputs.items()}),
        env=os.environ | {"CI": "true"},  # no telemetry
        capture_output=True,
        text=True,
    )
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"OpenVINO cannot run it ({reason})", where=str(folder))
    # In kB. Not rusage's maximum: a process inherits that from the one that starts it.
    return int(result.stdout.split()[-1]) * 1024
