"""Model references: what a local folder must not contain, and what a model states about its license."""

import os

import pytest

from toolkit.core.errors import UserError
from toolkit.models.sources import local_model, stated_license


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


@pytest.mark.parametrize(
    ("readme", "stated"),
    [
        (None, {}),
        ("# No front matter, license: mit\n", {}),
        ("---\nlanguage: en\n---\n", {}),
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# Card\n", {"license": "apache-2.0"}),
        (
            "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n",
            {"license": "other", "license_name": "own", "license_link": "LICENSE"},
        ),
        ("---\nlicense: [mit, gpl]\n---\n", {}),
        ("---\nlicense: {a: [\n---\n", {}),
        ("---\n!!python/object/apply:os.system [exit]\n---\n", {}),
    ],
)
def test_a_license_is_what_the_front_matter_of_the_model_states(folder, readme, stated):
    if readme is not None:
        (folder / "README.md").write_text(readme)
    assert stated_license(str(folder), folder / "scratch") == stated
    assert not (folder / "scratch").exists()


def test_a_hub_model_that_cannot_be_reached_states_nothing(tmp_path):
    assert stated_license("nobody/nothing", tmp_path / "scratch") == {}
