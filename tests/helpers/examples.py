"""Modules of `examples/`, which is no package: each folder is on the path of its own program alone."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from toolkit.core import paths

EXAMPLES = paths.REPOSITORY / "examples"
_SERVICE = ("batching", "predictor", "service")


@contextmanager
def service_modules() -> Iterator[dict[str, ModuleType]]:
    """The service's modules by name, imported as by uvicorn and forgotten afterwards; `service` if FastAPI is there."""
    sys.path.insert(0, str(EXAMPLES / "fastapi"))
    try:
        found = {}
        for name in _SERVICE:
            try:
                found[name] = __import__(name)
            except ModuleNotFoundError as missing:
                if missing.name != "fastapi":
                    raise
        yield found
    finally:
        sys.path.remove(str(EXAMPLES / "fastapi"))
        for name in _SERVICE:
            sys.modules.pop(name, None)
