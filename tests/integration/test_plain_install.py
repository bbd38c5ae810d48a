"""What a plain install can do: training without the libraries of the extras, and saying what the rest needs."""

import os
import subprocess
import sys

import pytest

from tests.integration.test_whole import tiny_recipe
from toolkit.recipe.load import dump_recipe

ABSENT = ("openvino", "openvino_tokenizers", "nncf", "neural_compressor", "optimum", "jinja2")


@pytest.fixture(scope="module")
def recipe_file(tiny_bert, tiny_task_files, tiny_text, tmp_path_factory):
    task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev), "max_seq_length": 16}
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(dump_recipe(tiny_recipe(tiny_bert, task, tiny_text)))
    return path


def plain(*arguments: object) -> subprocess.CompletedProcess:
    """A command in a process that cannot import any of those libraries."""
    code = f"import sys; sys.modules |= dict.fromkeys({ABSENT}); from toolkit.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
    )


@pytest.fixture(scope="module")
def trained(recipe_file, tmp_path_factory):
    """The run folder of the once-for-all part, and what was said while it was made."""
    runs = tmp_path_factory.mktemp("runs")
    without = [f"{stage}=null" for stage in ("task_teacher", "transfer", "quantize", "export", "benchmark")]
    done = plain("run", recipe_file, "tasks={}", *without, "--runs", runs)
    assert done.returncode == 0, done.stderr
    return runs / "tiny", done.stdout


def test_teacher_and_student_are_trained_and_shown_without_the_extras(trained):
    folder, said = trained
    assert (folder / "student" / "model.safetensors").is_file()
    assert "No report page: jinja2 is not installed; pip install -c constraints.txt -e '.[report]'" in said


def test_a_stage_that_needs_an_extra_names_it_before_it_does_anything(recipe_file, tmp_path):
    done = plain("run", recipe_file, "student.pruning.backend=inc", "--only", "student", "--runs", tmp_path)
    # The teacher is not there either: what is looked at first is what the stage itself lacks.
    assert done.returncode == 2
    assert "student: this stage needs neural_compressor, which is not installed" in done.stderr
    assert "Instead: pip install -c constraints.txt -e '.[inc]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "tiny" / "student.partial").exists()


def test_check_and_plan_say_beforehand_which_stages_will_stop(recipe_file, tmp_path):
    told = "quantize, export, benchmark: openvino is not installed; pip install -c constraints.txt -e '.[deploy]'"
    checked = plain("check", recipe_file)
    assert checked.returncode == 0, checked.stderr
    assert f"! {told}" in checked.stdout
    planned = plain("plan", recipe_file, "--runs", tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "toy/export: openvino is not installed" in planned.stdout


def test_a_command_that_needs_an_extra_names_it(trained):
    done = plain("report", trained[0])
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "pruneofa: jinja2 is not installed\n  Instead: pip install -c constraints.txt -e '.[report]'"
    )


def test_doctor_takes_a_machine_without_extras_for_one_that_trains():
    shown = plain("doctor").stdout
    assert "extra deploy" in shown
    assert "openvino is missing" in shown
    assert "extra inc" in shown
