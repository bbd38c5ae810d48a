"""`--json`: one document on stdout, of errors too, with the same exit codes; `--quiet`, `--verbose`, completion."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.integration.test_whole import tiny_recipe
from toolkit.cli import failures, terminal
from toolkit.core.errors import CheckFailed, TimeLimitReached, UserError
from toolkit.recipe.load import dump_recipe


def pruneofa(*args: object, **env: str) -> subprocess.CompletedProcess:
    code = "import sys; sys.argv[0] = 'pruneofa'; from toolkit.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | env)


def document(done: subprocess.CompletedProcess, code: int = 0) -> dict:
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def recipe(tiny_bert, tiny_task_files, tiny_text, tmp_path_factory) -> Path:
    """A recipe with one stage that trains."""
    task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev), "max_seq_length": 16}
    left_out = dict.fromkeys(["corpus", "teacher", "student", "transfer", "quantize", "export", "benchmark"])
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(dump_recipe(tiny_recipe(tiny_bert, task, tiny_text, **left_out)))
    return path


def test_check_lists_what_it_found(recipe):
    found = document(pruneofa("check", recipe, "--json"))
    assert found["name"] == "tiny"
    listed = {line["what"]: line["found"] for line in found["checked"]}
    assert "480 training rows, 120 evaluation rows" in listed["task toy"][0]
    assert found["missing"] == []


def test_plan_and_run_have_a_row_for_each_stage(recipe, tmp_path):
    planned = document(pruneofa("plan", recipe, "--json", "--runs", tmp_path))
    (step,) = planned["steps"]
    assert (step["step"], step["cached"], step["steps"]) == ("toy/task_teacher", False, 80)
    assert step["seconds"] > 0
    assert step["memory_bytes"] > 1e8
    done = pruneofa("run", recipe, "task_teacher.steps=3", "--json", "--runs", tmp_path)
    assert "toy/task_teacher" in done.stderr
    ran = document(done)
    (stage,) = ran["stages"]
    assert stage["task"] == "toy"
    assert 0 < stage["dev"]["accuracy"] < 1
    assert Path(ran["report"]).is_file()
    assert ran["variants"] == []
    inspected = document(pruneofa("inspect", tmp_path / "tiny", "--json"))
    assert (inspected["kind"], inspected["stages"]) == ("run", ran["stages"])


def test_inspect_has_numbers_and_null_where_nothing_was_counted(tmp_path):
    save_file({"w": np.array([[0, 1], [2, 3]], np.float32), "i": np.zeros((2, 2), np.int8)}, tmp_path / "a.safetensors")
    found = document(pruneofa("inspect", tmp_path, "--json"))
    assert {m["name"]: m["sparsity"] for m in found["matrices"]} == {"w": 0.25, "i": None}
    assert (found["kind"], found["pruned_weights"], found["sparsity"]) == ("checkpoint", 4, 0.25)


def test_doctor_and_scoreboard_are_documents():
    done = pruneofa("doctor", "--json")
    found = document(done, done.returncode)
    assert done.returncode == (0 if found["ok"] else 1)
    assert ("error" in found) == (not found["ok"])
    assert {"torch", "isa", "sparse kernel"} <= {fact["item"] for fact in found["facts"]}
    results = document(pruneofa("scoreboard", "--json"))["results"]
    assert {"name", "status", "measured"} <= results[0].keys()
    assert results[0]["row"]["claimed"]


@pytest.mark.parametrize(
    ("command", "where"),
    [
        (["check", "no.yaml"], "no.yaml"),
        (["plan", "no.yaml"], "no.yaml"),
        (["run", "no.yaml"], "no.yaml"),
        (["inspect", "no"], "no"),
        (["bench", "no"], "no"),
        (["scoreboard", "--file", "no.yaml"], "no.yaml"),
        (["compress", "no/at/all/", "--train", "no.tsv", "--dev", "no.tsv"], "no.tsv"),
        (["doctor", "--no-such-option"], ""),
        (["bench", "no", "--rounds", "0"], ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_error_is_a_document_with_the_exit_code_of_the_message(command, where):
    done = pruneofa(*command, "--json")
    error = document(done, 2)["error"]
    assert error.keys() == {"what", "where", "instead"}
    assert error["what"]
    assert error["where"].endswith(where)
    assert "Traceback" not in done.stderr


def test_each_mistake_of_a_recipe_has_its_line(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("name: x\nmodel: {sauce: a}\nseed: many\n")
    errors = document(pruneofa("check", path, "--json"), 2)["error"]["errors"]
    assert [e["where"] for e in errors] == [f"{path}:2", f"{path}:3"]
    assert "source" in errors[0]["instead"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("a", where="b", instead="c"), 2), (CheckFailed("a"), 1), (TimeLimitReached("at step 1"), 75)],
)
def test_what_was_made_before_an_error_is_in_its_document(error, code, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(terminal, "SETTINGS", terminal._Settings(document=stream, found={"folder": "runs/x"}))
    assert failures.exit_code(error) == code
    found = json.loads(stream.getvalue())
    assert found["folder"] == "runs/x"
    assert found["error"]["what"].endswith(str(error) if code == 75 else "a") or code == 75


def test_what_libraries_and_subprocesses_print_goes_to_stderr():
    code = (
        "import os\nfrom toolkit.cli import terminal\nterminal.reserve_stdout()\nprint('one')\nos.system('echo two')\n"
        "terminal.print_document({'n': float('nan')})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"n": None}
    assert set(done.stderr.split()) == {"one", "two"}


def test_quiet_prints_errors_only_and_verbose_tracebacks_too(recipe):
    done = pruneofa("check", recipe, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "no such file" in pruneofa("check", "no.yaml", "--quiet").stderr
    assert "Traceback" in pruneofa("check", "no.yaml", "--verbose").stderr
    assert "cannot be used together" in pruneofa("check", recipe, "--quiet", "--verbose").stderr


def test_a_shell_completes_commands():
    words = {"_PRUNEOFA_COMPLETE": "complete_bash", "COMP_WORDS": "pruneofa com", "COMP_CWORD": "1"}
    assert pruneofa(**words).stdout.split() == ["compress"]
