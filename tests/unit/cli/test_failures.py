"""The end of a command that does not succeed: one message, no traceback, and the exit code that says why."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# A command line with one more command: it gets a signal, which a second one may follow, or raises.
COMMANDS = """
import errno, os, signal, time
import toolkit.cli as cli

@cli.app.command()
def stop(first: int, second: int = 0):
    try:
        os.kill(os.getpid(), first)
        time.sleep(60)
    finally:
        if second:
            os.kill(os.getpid(), second)
            time.sleep(60)

@cli.app.command()
def crash(recipe: str, kind: str = "KeyError"):
    gpu = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")
    cpu = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
    known = {"KeyError": KeyError("no_such"), "MemoryError": MemoryError(), "OSError": OSError(errno.EIO, "odd")}
    raise (known | {"gpu": gpu, "cpu": cpu, "ValueError": ValueError("odd")})[kind]

cli.main()
"""


# A job in the background of a shell, as a test run may be, begins with Ctrl-C ignored.
HEEDED = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
IGNORED = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"


def ended(*args: object, **settings: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", HEEDED + COMMANDS, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **settings)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_a_command_with_a_message_and_its_own_exit_code(number, code, word):
    done = ended("stop", int(number))
    assert (done.returncode, done.stderr) == (code, f"pruneofa: {word}; run the same command again to resume\n")


def test_a_second_signal_ends_it_at_once_and_without_a_traceback():
    done = ended("stop", int(signal.SIGINT), "--second", int(signal.SIGINT))
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_a_signal_that_the_parent_ignores_stays_ignored():
    code = IGNORED + COMMANDS.replace("time.sleep(60)", "print('went on')", 1)
    done = subprocess.run([sys.executable, "-c", code, "stop", "2"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "went on\n")


@pytest.mark.parametrize("kind", ["KeyError", "ValueError", "OSError"])
def test_an_unforeseen_exception_is_one_message_a_crash_file_and_exit_code_70(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\n")
    done = ended("crash", recipe, "--kind", kind)
    assert done.returncode == 70
    assert re.match(rf"pruneofa: a fault of this program, not yours: {kind}", done.stderr)
    assert "Traceback" not in done.stderr
    (crash,) = tmp_path.glob("pruneofa-crash-*.txt")
    assert f"Details: {crash}" in done.stderr
    text = crash.read_text()
    for part in (f"pruneofa crash {recipe}", "name: mine", "torch ", "Traceback (most recent call last)", kind):
        assert part in text


def test_without_a_folder_to_write_to_the_traceback_is_on_the_terminal(tmp_path, monkeypatch):
    code = f"import tempfile; tempfile.tempdir = {str(tmp_path / 'no_such')!r}\n" + COMMANDS
    done = subprocess.run([sys.executable, "-c", code, "crash", "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert not Path(tmp_path / "no_such").exists()


@pytest.mark.parametrize("kind", ["MemoryError", "gpu", "cpu"])
def test_a_lack_of_memory_names_the_settings_that_need_less(kind):
    done = ended("crash", "x", "--kind", kind)
    assert done.returncode == 2
    assert done.stderr.startswith("pruneofa: out of memory; finished stages are kept\n  Instead: a smaller batch_size")
