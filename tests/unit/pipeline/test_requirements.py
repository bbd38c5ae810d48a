"""Extras required by each stage, and their agreement with setup.cfg."""

import configparser
import sys
from importlib import metadata

import pytest

from toolkit.cli.doctor import facts, pinned_versions
from toolkit.core import paths
from toolkit.core.errors import UserError
from toolkit.pipeline.requirements import EXTRAS, TRACKERS, extra_for, require
from toolkit.recipe import Benchmark, Export, Quantize, Student, TrainOnly, Transfer

LESSON = {"distillation": {"train": {"steps": 1}}}


def student(backend: str) -> Student:
    return Student.model_validate(LESSON | {"pruning": {"backend": backend}})


def pruned_transfer(backend: str) -> Transfer:
    ramp = {"start_epoch": 0, "end_epoch": 1, "update_frequency": 0.5, "pruners": [{}]}
    pruning = {"backend": backend, "train": {"epoch": 2}, "approach": {"weight_compression": ramp}}
    return Transfer.model_validate({"pruning": pruning})


@pytest.mark.parametrize(
    ("section", "extra"),
    [
        (TrainOnly.model_validate({"train": {"steps": 1}}), ""),
        (student("magnitude"), ""),
        (student("inc"), "inc"),
        (student("nncf"), "deploy"),
        (Transfer.model_validate(LESSON), ""),
        (pruned_transfer("magnitude"), ""),
        (pruned_transfer("inc"), "inc"),
        (Quantize.model_validate(LESSON), "deploy"),
        (Export(), "deploy"),
        (Benchmark(), "deploy"),
        (None, ""),
    ],
)
def test_a_stage_needs_the_extra_of_what_it_imports(section, extra):
    assert extra_for(section) == extra


def test_extras_are_those_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(paths.REPOSITORY / "setup.cfg")
    extras = {name: set(value.split()) for name, value in setup["options.extras_require"].items()}
    assert {name: set(brings) for name, brings in EXTRAS.items()} == {name: extras[name] for name in EXTRAS}
    assert all(extras[name] == {module} for name, module in TRACKERS.items())
    assert extras["all"] == {f"pruneofa[{','.join(EXTRAS)}]"}
    always = set(setup["options"]["install_requires"].split())
    assert not always & {name for brings in EXTRAS.values() for name in brings}
    assert {"torch", "transformers", "datasets", "accelerate"} <= always


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_nothing_older_than_the_version_that_was_tested_is_left_as_it_is(name):
    setup = configparser.ConfigParser()
    setup.read(paths.REPOSITORY / "setup.cfg")
    wanted = [line for line in setup["options"]["install_requires"].splitlines() if line.startswith(name)]
    tested = pinned_versions()[name].rpartition(".")[0]
    assert wanted == [f"{name} >= {tested}"]


def test_a_library_that_is_not_there_is_told_with_the_extra_that_brings_it(monkeypatch):
    require("student", student("inc"))
    monkeypatch.setitem(sys.modules, "six", None)
    with pytest.raises(UserError, match="needs six, which is not installed") as error:
        require("student", student("inc"))
    assert error.value.instead.endswith("'.[inc]'")
    require("student", student("magnitude"))


@pytest.mark.parametrize(
    ("absent", "sound"), [("nncf", True), ("neural-compressor", True), ("torch", False), ("pydantic", False)]
)
def test_doctor_wants_what_training_needs_and_leaves_the_extras_to_the_user(monkeypatch, absent, sound):
    there = metadata.version

    def version(name):
        if name == absent:
            raise metadata.PackageNotFoundError(name)
        return pinned_versions().get(name) or there(name)

    monkeypatch.setattr(metadata, "version", version)
    listed = facts()
    assert all(fact.ok for fact in listed) == sound
    assert "not installed" in {fact.item: fact.found for fact in listed}[absent]
