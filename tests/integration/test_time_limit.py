"""`run --max-time`: stopped by the clock again and again, a run ends with the weights of an uninterrupted one."""

import os
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.integration.test_processes import PRETRAINING, TORCHRUN
from tests.integration.test_whole import WEIGHTS, trained_recipe
from toolkit.core.artifacts import NullProgress
from toolkit.core.errors import TimeLimitReached
from toolkit.pipeline.run import Run
from toolkit.recipe.load import dump_recipe

STEPS = 20


@pytest.fixture(scope="module")
def recipe(tiny_bert, tiny_task_files, tiny_text):
    """The tiny recipe up to `quantize`, with no checkpoint but those that the time limit makes."""
    train = {"steps": STEPS, "batch_size": 8, "log_every": 3, "gradient_accumulation_steps": 2}
    ramp = {"end_step": 15, "update_frequency_on_step": 2}
    return trained_recipe(tiny_bert, tiny_task_files, tiny_text, train, "magnitude", ramp)


def run(recipe, folder, time_over=lambda: False):
    job = Run(recipe, folder, lambda step: nullcontext(NullProgress()))
    job.time_over = time_over
    job()


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """The folder of the uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run(recipe, folder)
    return folder


def test_a_run_that_the_clock_stops_in_each_stage_ends_with_identical_weights(recipe, whole, tmp_path):
    calls, stops = 0, []

    def every_seventh_time():
        nonlocal calls
        calls += 1
        return calls % 7 == 0

    while True:
        try:
            run(recipe, tmp_path / "tiny", every_seventh_time)
            break
        except TimeLimitReached as reached:
            stops.append(str(reached))
            assert len(stops) < 50
    cut = Counter(stop.partition("of stage ")[2] for stop in stops if stop.startswith("at step"))
    assert {label.rpartition("/")[2] for label in cut} == WEIGHTS.keys(), stops
    assert min(cut.values()) >= 2, stops
    for stage, weights in WEIGHTS.items():
        assert (whole / weights).read_bytes() == (tmp_path / "tiny" / weights).read_bytes(), stage


def test_with_no_time_at_all_each_call_still_makes_a_step_or_a_stage(recipe, tmp_path):
    said = []
    for _ in range(STEPS + 2):
        with pytest.raises(TimeLimitReached) as reached:
            run(recipe, tmp_path / "tiny", lambda: True)
        said.append(str(reached.value))
    expected = [f"at step {step} of {STEPS} of stage teacher" for step in range(1, STEPS)]
    assert said == [*expected, "before stage student", *(f"at step {n} of {STEPS} of stage student" for n in (1, 2))]


def command(recipe: Path, runs: Path, launcher: tuple[str, ...], *changes: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *launcher, "-m", "toolkit", "run", str(recipe), *PRETRAINING, *changes, "--runs", str(runs)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


@pytest.mark.parametrize(("launcher", "code"), [((), 75), (TORCHRUN, 1)], ids=["one process", "two processes"])
def test_the_command_ends_with_its_own_code_and_says_where(recipe, tmp_path, launcher, code):
    """torchrun turns every failure into 1; both of its processes stop at the same step, so that they can go on."""
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    first = command(file, tmp_path, launcher, "--max-time", "1s")
    line = f"pruneofa: time limit reached at step 1 of {STEPS} of stage teacher; the same command resumes from there"
    assert first.returncode == code, first.stderr
    assert line in first.stderr.splitlines()
    if not launcher:
        assert first.stderr.splitlines()[-1] == line
    rest = command(file, tmp_path, launcher, "--max-time", "1h")
    assert rest.returncode == 0, rest.stderr
    assert rest.stdout.count("resuming from step 1\n") == 1
    assert not list(tmp_path.rglob("*.partial"))
