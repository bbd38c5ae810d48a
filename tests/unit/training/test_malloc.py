"""What is freed stays with the process."""

import ctypes
import platform
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest

from toolkit.training.hardware import keep_freed_memory

_TOUCH = """
import resource
import torch
{before}
for _ in range(12):  # until holes are as large as glibc wants them for an aligned tensor
    torch.ones(12_000_000).sum()
start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(12_000_000).sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
"""


def test_a_tensor_as_large_as_one_that_was_freed_costs_no_new_pages():
    def faults(before: str) -> int:
        run = subprocess.run([sys.executable, "-c", _TOUCH.format(before=before)], capture_output=True, check=True)
        return int(run.stdout)

    pages = 5 * 4 * 12_000_000 // resource.getpagesize()
    assert faults("from toolkit.training.hardware import keep_freed_memory; keep_freed_memory()") < pages / 20
    assert faults("") > pages / 20  # or there would be nothing to gain


@pytest.mark.parametrize(
    ("largest", "kept"),
    [(2**31 - 1, {-3: 2**31 - 1, -1: 2**31 - 1}), (32 << 20, {-3: 32 << 20, -1: 2**31 - 1}), (0, {})],
    ids=["now", "before 2.35", "refuses"],
)
def test_a_library_that_refuses_large_pieces_is_not_left_with_the_smallest(monkeypatch, largest, kept):
    options: dict[int, int] = {}

    def mallopt(option: int, value: int) -> int:
        if option == -3 and value > largest:
            return 0
        options[option] = value
        return 1

    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    keep_freed_memory()
    assert options == kept
