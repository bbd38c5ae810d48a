"""Environment variables of the libraries: no telemetry, few log messages, and where NNCF finds its extension."""

import os
import sys
from pathlib import Path


def quiet_libraries() -> None:
    """Disables telemetry and verbose logging; must run before any library reads its environment."""
    for name, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "TRANSFORMERS_VERBOSITY": "error",
        "NNCF_EXTENSION_LOAD_TIMEOUT": "600",
        "TORCH_EXTENSIONS_DIR": str(Path(sys.prefix) / "torch_ext"),
    }.items():
        os.environ.setdefault(name, value)
    # NNCF builds its extension with ninja. It is next to the interpreter, but not on PATH if no environment is active.
    here, found = str(Path(sys.executable).parent), os.environ.get("PATH", "")
    if found.split(os.pathsep)[0] != here:
        os.environ["PATH"] = os.pathsep.join([here, found])
    # OpenVINO and NNCF send a telemetry event at import; without this package they use stubs that send nothing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
