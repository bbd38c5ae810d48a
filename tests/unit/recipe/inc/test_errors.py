"""What is wrong in an INC file is told in one message with its line; what cannot be done as well."""

import subprocess
import sys

import pytest

from toolkit.core.errors import UserError
from toolkit.recipe.inc import IncFlags, read_inc

FLAGS = IncFlags(model="m", teacher="t", task="sst2", train_file="train.tsv", validation_file="dev.tsv")
HEAD = "model:\n  name: x\n  framework: pytorch\n"
PRUNE = HEAD + "pruning:\n  approach:\n    weight_compression:\n"
QUANT = HEAD + "quantization:\n  approach: post_training_static_quant\n"
KD = HEAD + "distillation:\n  train:\n    criterion:\n      KnowledgeDistillationLoss:\n"


@pytest.fixture
def complaint(tmp_path):
    """The error that a text leads to."""

    def complaint(text: str | bytes, flags: IncFlags = FLAGS) -> UserError:
        path = tmp_path / "inc.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(UserError) as caught:
            read_inc([path], flags)
        assert "Traceback" not in str(caught.value)
        return caught.value

    return complaint


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        # the schema
        ("model:\n  framework: pytorch\n", 1, "`model.name` is missing"),
        (HEAD + "prunning: {}\n", 4, "unknown key `prunning`"),
        (PRUNE + "      target_sparsity: much\n", 7, "target_sparsity must be a number >= 0 and < 1, not 'much'"),
        (PRUNE + "      target_sparcity: 0.9\n", 7, "unknown key"),
        (PRUNE + "      pattern: 4by1\n", 7, "unknown pattern '4by1'"),
        (PRUNE + "      pruners:\n        - !Pruner {prune_tpye: magnitude}\n", 8, "prune_tpye"),
        (PRUNE + "      pruners:\n        - !Pruner {prune_type: lottery}\n", 8, "must be one of basic_magnitude"),
        (PRUNE + "      sparsity_decay_type: cubic\n", 7, "must be one of exp, cos, linear, cube"),
        (PRUNE + "      start_epoch: -1\n", 7, ">= 0"),
        (HEAD + "tuning:\n  accuracy_criterion:\n    relative: 0.01\n    absolute: 0.01\n", 7, "not both"),
        (KD + "        loss_weights: [0.5, 0.6]\n", 8, "must add up to 1, not 1.1"),
        (KD + "        temperature: 0\n", 8, "> 0"),
        (KD + "        loss_types: [CE, BCE]\n", 8, "one of CE, KL, MSE"),
        (QUANT + "  model_wise: {weight: {granularity: per_row}}\n", 6, "per_channel, per_tensor"),
        (QUANT + "  approach: fast\n", 6, "duplicate key"),
        (HEAD + "tuning: {exit_policy: {timeout: soon}}\n", 4, "an integer >= 0, not 'soon'"),
        (HEAD + "evaluation: {performance: {configs: {num_of_instance: 0}}}\n", 4, "> 0"),
        (HEAD + "version: 2.0\n", 4, "version"),
        # YAML itself
        (HEAD + "pruning: !!python/object:os.system {}\n", 4, "unknown tag"),
        (HEAD + "pruning: [\n", 5, "not valid YAML"),
        (HEAD + "\tdevice: cpu\n", 4, "not valid YAML"),
        # what cannot be done
        (HEAD.replace("pytorch", "tensorflow") + "quantization: {}\n", 3, "only PyTorch models are supported"),
        (PRUNE + "      pruners: [!Pruner {method: per_channel}]\n", 7, "channel pruning is not supported"),
        (PRUNE + "      prune_type: magnitude_progressive\n      pruners: [!Pruner {}]\n", 7, "progressive"),
        (PRUNE + "      prune_layer_type: [Conv2d]\n", 7, "only linear layers"),
        (PRUNE + "      start_step: 5\n", 7, "start_step: not supported"),
        (
            QUANT + "  model_wise: {weight: {scheme: asym}}\n",
            6,
            "asym is not supported: OpenVINO's CPU kernels require symmetric weights",
        ),
        (QUANT + "  model_wise: {weight: {bit: 4}}\n", 6, "8 bits, or 7"),
        (QUANT + "  model_wise: {activation: {algorithm: kl}}\n", 6, "ranges are computed with minmax"),
        (QUANT + "  model_wise: {activation: {granularity: per_channel}}\n", 6, "one scale per activation tensor"),
        (QUANT + "  optype_wise: {Conv2d: {weight: {dtype: [fp32]}}}\n", 6, "no such operation"),
        (QUANT + "  recipes: {weight_correction: true}\n", 6, "corrects only biases"),
        (QUANT + "evaluation: {accuracy: {metric: {mAP: {}}}}\n", 6, "this metric is not supported"),
        (QUANT + "tuning: {accuracy_criterion: {higher_is_better: false}}\n", 6, "higher is better"),
        (QUANT + "graph_optimization: {precisions: [bf16]}\n", 6, "precisions: not supported"),
        (HEAD + "device: cpu\n", None, "nothing to do: the file has no pruning"),
        (HEAD + "pruning: {}\n", 4, "`approach` is missing"),
        (
            QUANT + "  optype_wise: {matmul: {weight: {dtype: [fp32]}}, BMM: {}}\n",
            6,
            "duplicate entry for MatMul under another name",
        ),
        (
            QUANT + "tuning:\n  objective: accuracy\n  multi_objectives: {objective: [accuracy]}\n",
            8,
            "cannot be combined with `objective`",
        ),
        (HEAD + "distillation: {train: {criterion: {CrossEntropyLoss: {}}}}\n", 4, "not a distillation loss"),
        # what the recipe says of it
        (PRUNE + "      names: ['(']\n", 7, "not a regular expression"),
        (QUANT + "  op_wise: {'(': {weight: {dtype: [fp32]}}}\n", 6, "not a regular expression"),
        (PRUNE + "      target_sparsity: 0.99\n", 7, "must not be above max_sparsity_ratio_per_layer (0.98)"),
        (PRUNE + '      pattern: "2:4"\n      target_sparsity: 0.9\n', 8, "2:4 means a sparsity of 2/4"),
        (PRUNE + "      initial_sparsity: 0.9\n      target_sparsity: 0.5\n", 7, "must not be above target_sparsity"),
        (PRUNE + "      pruners: [!Pruner {}, !Pruner {}]\n", 7, "only one pruner may omit `names`"),
    ],
)
def test_a_mistake_is_told_with_its_line(complaint, text, line, words):
    error = complaint(text)
    assert words in str(error)
    if line is not None:
        assert f"inc.yaml:{line}" in str(error)


@pytest.mark.parametrize(
    ("flags", "text", "words"),
    [
        ({"model": None}, PRUNE + "      target_sparsity: 0.5\n", "--model is missing"),
        ({"task": "mine", "train_file": None}, PRUNE + "      target_sparsity: 0.5\n", "--train-file is missing"),
        ({"teacher": None}, KD + "        temperature: 2.0\n", "distillation needs a teacher model"),
    ],
)
def test_a_flag_that_is_needed_is_named(complaint, flags, text, words):
    assert words in str(complaint(text, IncFlags(**{**vars(FLAGS), **flags})))


def test_a_large_file_is_refused_before_it_is_parsed(complaint):
    error = complaint(b"model: {name: x, framework: pytorch}\n# " + b"x" * 10_000_000)
    assert "larger than 1 MB" in str(error)


def test_deep_nesting_is_told_without_a_traceback(complaint):
    assert "nested too deeply" in str(complaint(HEAD + "pruning: " + "[" * 5000 + "]" * 5000 + "\n"))


def test_aliases_that_stand_for_billions_are_refused(complaint):
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for previous, name in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{name}: &{name} [{', '.join(['*' + previous] * 9)}]\n"
    assert "values, aliases" in str(complaint(HEAD + bomb))


def test_what_is_no_text_is_told(complaint):
    assert "not a UTF-8 text file" in str(complaint(b"\xff\xfe\x00"))
    assert "the file is empty" in str(complaint(""))
    assert "mapping of `key: value` lines" in str(complaint("- a\n- b\n"))


def test_several_mistakes_are_told_together_in_order(complaint):
    message = str(complaint(PRUNE + "      target_sparsity: 2\n      end_epoch: x\n"))
    assert message.index("inc.yaml:7") < message.index("inc.yaml:8")


def test_the_same_section_said_differently_in_two_files_names_both(tmp_path):
    for name, target in (("a", 0.8), ("b", 0.9)):
        (tmp_path / f"{name}.yaml").write_text(PRUNE + f"      target_sparsity: {target}\n")
    with pytest.raises(UserError, match=r"b\.yaml:4: `pruning` is also in a\.yaml"):
        read_inc([tmp_path / "a.yaml", tmp_path / "b.yaml"], FLAGS)
    (tmp_path / "b.yaml").write_text((tmp_path / "a.yaml").read_text())
    read_inc([tmp_path / "a.yaml", tmp_path / "b.yaml"], FLAGS)


def test_the_command_prints_what_is_not_used_and_fails_with_2(tmp_path):
    path = tmp_path / "inc.yaml"
    path.write_text(QUANT + "tuning:\n  tensorboard: true\n")
    command = [sys.executable, "-m", "toolkit", "run", "--inc", str(path), "--model", "nowhere/at/all/", "--task", "t"]
    files = ["--train_file", "a.tsv", "--validation_file", "b.tsv"]
    done = subprocess.run([*command, *files], capture_output=True, text=True)
    assert done.returncode == 2
    assert "ignored: " in done.stderr
    assert "inc.yaml:7: tuning.tensorboard: --track" in done.stderr
    assert "nowhere/at/all" in done.stderr
    assert "Traceback" not in done.stderr
    explained = subprocess.run(
        [sys.executable, "-m", "toolkit", "inc", "explain", str(path)], capture_output=True, text=True
    )
    assert explained.returncode == 0
    assert "source: <model>" in explained.stdout


def test_flags_of_incs_files_without_inc_are_refused():
    done = subprocess.run([sys.executable, "-m", "toolkit", "run", "--teacher", "x"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--teacher requires --inc" in done.stderr
