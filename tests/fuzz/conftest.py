"""How much is fuzzed: a minute in all by default, `make fuzz` for a night's worth. Nothing is left in the checkout."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, configuration, settings

from tests.fuzz.folders import write_checkpoint, write_data

configuration.set_hypothesis_home_dir(tempfile.gettempdir())
_FUZZERS = 13  # functions that share FUZZ_INPUTS
_INPUTS = int(os.environ.get("FUZZ_INPUTS", "0"))
settings.register_profile(
    "fuzz",
    derandomize=not _INPUTS,
    max_examples=max(1, -(-_INPUTS // _FUZZERS)) if _INPUTS else 75,
    deadline=None,
    database=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("fuzz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a valid checkpoint in `model`, and the data of `folders.RECIPE`."""
    folder = tmp_path_factory.mktemp("fuzzed")
    write_checkpoint(folder / "model")
    write_data(folder)
    return folder
