"""Extras required by each stage, and their agreement with setup.cfg."""

import configparser
import io
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from toolkit.cli.doctor import Fact, facts, facts_table, pinned_versions
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


def required(key: str = "install_requires", section: str = "options") -> dict[str, Requirement]:
    """Name -> requirement of one list of setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(paths.REPOSITORY / "setup.cfg")
    listed = [Requirement(line) for line in setup[section][key].splitlines() if line]
    return {each.name: each for each in listed}


def test_extras_are_those_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(paths.REPOSITORY / "setup.cfg")
    extras = {name: set(required(name, "options.extras_require")) for name in setup["options.extras_require"]}
    always = set(required())
    assert {name: set(brings) for name, brings in EXTRAS.items()} == {name: extras[name] - always for name in EXTRAS}
    assert all(extras[name] == {module} for name, module in TRACKERS.items())
    assert setup["options.extras_require"]["all"].strip() == f"pruneofa[{','.join(EXTRAS)}]"
    assert not always & {name for brings in EXTRAS.values() for name in brings}
    assert {"torch", "transformers", "datasets", "accelerate"} <= always


@pytest.mark.parametrize(
    ("name", "unusable"),
    [
        ("neural-compressor", "3.10"),  # no pruning
        ("numpy", "2.4.6"),  # refused by the neural-compressor that prunes
        ("optimum-intel", "1.15.0"),  # what pip took beside a newer transformers
        ("pyarrow", "26.0.1"),  # cannot be imported with numpy 1
        ("setuptools", "84.2.1"),  # no pkg_resources
        ("transformers", "5.24.0"),  # refused by optimum-intel
        ("torch", "2.12.0"),  # older than what was tested
    ],
)
def test_pip_without_the_pins_takes_no_version_that_cannot_work(name, unusable):
    everything = required() | required("deploy", "options.extras_require") | required("inc", "options.extras_require")
    assert unusable not in everything[name].specifier


def test_the_pins_are_within_the_limits():
    everything = required() | required("deploy", "options.extras_require") | required("inc", "options.extras_require")
    limits = {name: each.specifier for name, each in everything.items() if each.specifier}
    pins = pinned_versions()
    assert {"transformers", "optimum-intel", "datasets"} <= limits.keys() & pins.keys()
    assert [name for name in limits.keys() & pins.keys() if pins[name] not in limits[name]] == []


def test_a_library_that_is_not_there_is_told_with_the_extra_that_brings_it(monkeypatch):
    require("student", student("inc"))
    monkeypatch.setitem(sys.modules, "six", None)
    with pytest.raises(UserError, match="needs six, which is not installed") as error:
        require("student", student("inc"))
    assert error.value.instead.endswith("'.[inc]'")
    require("student", student("magnitude"))


def facts_without(absent, monkeypatch):
    """The facts of doctor if every distribution has its tested version and one is not installed."""
    there = metadata.version

    def version(name):
        if name == absent:
            raise metadata.PackageNotFoundError(name)
        return pinned_versions().get(name) or there(name)

    monkeypatch.setattr(metadata, "version", version)
    return facts()


@pytest.mark.parametrize(
    ("absent", "sound"), [("nncf", True), ("neural-compressor", True), ("torch", False), ("pydantic", False)]
)
def test_doctor_wants_what_training_needs_and_leaves_the_extras_to_the_user(monkeypatch, absent, sound):
    listed = facts_without(absent, monkeypatch)
    assert all(fact.ok for fact in listed) == sound
    assert "not installed" in {fact.item: fact.found for fact in listed}[absent]


@pytest.mark.parametrize("absent", ["ruff", "uvicorn", "execnet"])
def test_doctor_does_not_ask_for_what_only_development_or_a_service_needs(monkeypatch, absent):
    listed = facts_without(absent, monkeypatch)
    assert all(fact.ok for fact in listed)
    assert absent not in {fact.item for fact in listed}


def test_doctor_shows_commands_completely_in_a_narrow_terminal():
    command = "pip install -c /" + "a-long-folder/" * 20
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(facts_table([Fact("extra", "missing", command)]))
    assert "".join(console.export_text().replace("│", "").split()).count("a-long-folder/") == 20
