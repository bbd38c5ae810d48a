"""Peak memory of a process that loads an IR and runs it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolkit.core.errors import UserError
from toolkit.ir.runtime import needed_extension

_STATUS = Path("/proc/self/status")
_SCRIPT = """
import json, sys
import numpy as np, openvino
inputs = {name: np.array(rows, dtype=np.int64) for name, rows in json.load(sys.stdin).items()}
core = openvino.Core()
for extension in sys.argv[2:]:
    core.add_extension(extension)
model = core.compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
model([next(inputs[name] for name in port.get_names() if name in inputs) for port in model.inputs])
lines = open("/proc/self/status").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""


def peak_memory(folder: Path, inputs: Mapping[str, Sequence[Sequence[int]]]) -> int:
    """Returns the peak resident memory, in bytes, of a new Python process that compiles an IR and runs it once.

    Includes the interpreter.

    Args:
        folder: IR folder with `openvino_model.xml`.
        inputs: Model inputs, [n, length] ids each.

    Raises:
        UserError: OpenVINO cannot load or run the IR, or the system is not Linux.
    """
    if not _STATUS.is_file():
        raise UserError(f"peak memory cannot be measured without {_STATUS}", where=str(folder), instead="Linux")
    extension = needed_extension(folder)
    result = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(folder / "openvino_model.xml"), *([str(extension)] if extension else [])],
        input=json.dumps({name: [list(map(int, row)) for row in rows] for name, rows in inputs.items()}),
        env=os.environ | {"CI": "true"},  # disables telemetry
        capture_output=True,
        text=True,
    )
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"OpenVINO cannot run the IR ({reason})", where=str(folder))
    # VmHWM is in kB. ru_maxrss cannot be used: a child process inherits it from its parent.
    return int(result.stdout.split()[-1]) * 1024
