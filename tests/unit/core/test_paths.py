"""Where the toolkit looks for the files of its repository."""

from pathlib import Path

from toolkit.cli.doctor import pinned_versions
from toolkit.core import machine, paths


def test_every_file_of_the_repository_is_found_where_it_is():
    assert Path(__file__).resolve().parents[3] == paths.REPOSITORY
    assert (paths.PACKAGE / "__init__.py").is_file()
    assert (paths.NATIVE / "CMakeLists.txt").is_file()
    assert (paths.RECIPES / "quickstart.yaml").is_file()
    assert paths.SCOREBOARD.is_file()
    assert paths.PINS.is_file()


def test_a_checkout_has_a_commit_and_pins():
    """Both would be empty, without an error, if the paths were wrong."""
    assert machine.commit()
    assert pinned_versions()["torch"]
