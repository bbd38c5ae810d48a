"""The benchmark of training steps ends when one of its processes does."""

import os
import subprocess
import sys

import pytest
import torch

from toolkit.core import paths

BENCHMARKS = paths.REPOSITORY / "benchmarks"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("interleaved(('nowhere', 2, 8, 8, 1), [['dense fine-tuning']], 1)", "makes 'dense fine-tuning' has ended"),
        ("together(('nowhere', 2, 8, 8, 1), 1, True, 1)", "one of 1 processes has ended"),
    ],
)
def test_a_process_that_dies_ends_the_benchmark(call, says):
    paths = os.pathsep.join([str(BENCHMARKS), str(BENCHMARKS.parent)])
    done = subprocess.run(
        [sys.executable, "-c", f"import training_step; training_step.{call}"],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert says in done.stderr
    assert "nowhere" in done.stderr, "the process's own message stands above"


@pytest.mark.parametrize(("gpus", "expected"), [(0, 2), (1, 1), (2, 2), (8, 2)])
def test_no_more_processes_than_gpus_share_a_step_unless_they_are_asked_to(monkeypatch, gpus, expected):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    import training_step

    assert training_step.sharing() == expected
