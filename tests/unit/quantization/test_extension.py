"""Native extensions: a lock without an owner is reported at once, one with an owner after the time limit."""

from pathlib import Path

import pytest
import torch

from toolkit.core.errors import UserError
from toolkit.quantization.extension import await_builds, is_stale


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """The lock of an extension that is not built."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "nncf" / "quantized_functions_cpu" / torch.__version__ / "lock"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_the_lock_of_a_killed_build_is_named_at_once(lock):
    with pytest.raises(UserError, match="killed build of quantized_functions_cpu") as caught:
        await_builds()
    assert caught.value.where == str(lock)


def test_a_build_that_another_process_never_ends_is_named_after_the_time_limit(lock, monkeypatch):
    monkeypatch.setenv("NNCF_EXTENSION_LOAD_TIMEOUT", "1")
    with lock.open(), pytest.raises(UserError, match="for 1 seconds") as caught:
        await_builds()
    assert caught.value.where == str(lock)


def test_a_time_limit_that_is_no_number_is_refused(lock, monkeypatch):
    lock.unlink()
    monkeypatch.setenv("NNCF_EXTENSION_LOAD_TIMEOUT", "soon")
    with pytest.raises(UserError, match="NNCF_EXTENSION_LOAD_TIMEOUT"):
        await_builds()


def test_without_a_folder_to_build_in_nncf_goes_on_without_the_extension(lock, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))
    await_builds()


def test_a_lock_is_stale_only_while_it_exists_and_nobody_holds_it(lock):
    assert is_stale(lock)
    with lock.open():
        assert not is_stale(lock)
    lock.unlink()
    assert not is_stale(lock)


def test_a_process_that_ends_while_locks_are_looked_for_is_passed_over(lock, monkeypatch):
    listed = Path.iterdir

    def iterdir(folder):
        if folder.name == "fd":
            raise FileNotFoundError(2, "No such file or directory", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert is_stale(lock)
