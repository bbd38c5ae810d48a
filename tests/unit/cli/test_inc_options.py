"""Flags of INC's published commands: each is used, told as ignored, or answered with what to write."""

import pytest

from tests.unit.cli.test_cli import pruneofa

LOCK = (
    "model: {name: mine, framework: pytorch}\npruning: {approach: {weight_compression: {prune_type: pattern_lock}}}\n"
)


@pytest.fixture
def prune(tmp_path) -> str:
    (tmp_path / "prune.yaml").write_text(LOCK)
    return str(tmp_path / "prune.yaml")


def test_the_published_command_is_understood(prune):
    published = (
        "--task_name sst2 --model_name_or_path M --teacher_model_name_or_path T --do_prune --do_distillation "
        "--max_seq_length 64 --batch_size 16 --learning_rate 2e-4 --num_train_epochs 7.0 --output_dir out "
        "--loss_weights 0 1 --temperature 2 --seed 5143 --resume out/best_model.pt --pad_to_max_length"
    )
    found = pruneofa("inc", "explain", prune, *published.split())
    assert (found.returncode, found.stderr) == (0, "")
    for line in (
        "# ignored: flag: --do_prune: the sections of the files decide what is done",
        "# ignored: flag: --output_dir: results are written to <runs>/<name>: --runs, --name",
        "# ignored: flag: --resume: interrupted runs are resumed automatically",
        "seed: 5143",
        "source: M",
        "task_teacher: T",
        "max_seq_length: 64",
        "epoch: 7 ",
        "batch_size: 16",
        "learning_rate: 0.0002",
        "temperature: 2",
        "loss_weights: [0.0, 1.0]",
    ):
        assert line in found.stdout, line


@pytest.mark.parametrize(
    ("flags", "message", "instead"),
    [
        (["--num_train_epochs", "2.5"], "must be a whole number, not 2.5", "transfer.steps="),
        (["--num-train-epochs", "inf"], "must be a whole number, not inf", "transfer.steps="),
        (["--doc_stride", "128"], "--doc_stride is not supported", "windows.stride=128"),
        (["--weight_decay", "0.1"], "--weight_decay is not supported", "transfer.weight_decay=0.1"),
        (["--config", "prune.yaml"], "--config is not supported", "--inc prune.yaml"),
    ],
)
def test_flags_that_cannot_be_used_are_answered_with_what_to_write(prune, flags, message, instead):
    found = pruneofa("inc", "explain", prune, *flags)
    assert found.returncode == 2
    assert message in found.stderr
    assert instead in found.stderr


def test_flags_of_incs_scripts_need_inc_files(prune):
    found = pruneofa("run", "recipe.yaml", "--do_prune")
    assert found.returncode == 2
    assert "--do_prune requires --inc" in found.stderr
