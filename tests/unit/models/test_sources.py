"""Model references: what a local folder must not contain."""

import os

import pytest

from toolkit.core.errors import UserError
from toolkit.models.sources import local_model


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "subfolder").mkdir()
    (tmp_path / "tokenizer.json").symlink_to(tmp_path / "config.json")  # as in the hub's cache
    return tmp_path


def test_a_folder_with_links_and_subfolders_is_a_model(folder):
    assert local_model(str(folder)) == folder


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "vocab.txt", "spiece.model", "mask.safetensors"])
def test_a_folder_with_a_fifo_or_a_device_is_refused_without_opening_it(folder, name):
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        with pytest.raises(UserError, match=r"not a regular file|no config\.json"):
            local_model(str(folder))
