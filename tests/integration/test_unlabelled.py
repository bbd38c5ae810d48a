"""A transfer and training for 8 bits with examples without labels, which the task teacher labels."""

import csv
from contextlib import nullcontext
from pathlib import Path

from safetensors.torch import load_file

from tests.integration.test_whole import tiny_recipe
from toolkit.core.artifacts import NullProgress
from toolkit.pipeline.run import Run

STEPS = {"steps": 6, "batch_size": 8, "criterion": {"KnowledgeDistillationLoss": {"loss_weights": [0, 1]}}}


def run(model, task, text, folder, **ready):
    folder.mkdir()
    logs = folder / "logs.tsv"
    logs.write_text("one\ttwo\n" + "".join(f"a written {n}\tanother {n}\n" for n in range(10)))
    lessons = {"transfer": {"pairs": 3}, "quantize": {"files": [str(logs)]}}
    added = {stage: {"distillation": {"train": STEPS, "unlabelled": more}} for stage, more in lessons.items()}
    added["quantize"]["quantization"] = {"calibration": {"sampling_size": 8}}
    recipe = tiny_recipe(model, task | {"ready": ready}, text, **added)
    recipe = recipe.model_copy(update={"export": None, "benchmark": None})
    return {m.stage: m for m in Run(recipe, folder, lambda step: nullcontext(NullProgress()))()}


def test_new_pairs_are_trained_on(tiny_bert, files, tiny_text, tmp_path):
    found = run(tiny_bert, files["pair"], tiny_text, tmp_path / "run")
    counts = {stage: found[stage].metrics["train_n"] for stage in ("task_teacher", "transfer", "quantize")}
    assert counts["task_teacher"] == 60 - 6  # a tenth is held out for tuning
    assert 54 + 100 < counts["transfer"] <= 54 + 3 * 108
    assert counts["quantize"] == 54 + 10
    assert found["transfer"].metrics["dev_n"] == 30
    assert all(check.ok for m in found.values() for check in m.checks)


def test_labels_have_no_part_in_it(tiny_bert, files, tiny_text, tmp_path):
    task = files["regression"]
    with Path(task["train"]).open(newline="") as stream:
        columns, *rows = csv.reader(stream, delimiter="\t")
    other = tmp_path / "train.tsv"
    with other.open("w", newline="") as stream:
        moved = [[*row[:-1], next_row[-1]] for row, next_row in zip(rows, rows[1:] + rows[:1], strict=True)]
        csv.writer(stream, delimiter="\t").writerows([columns, *moved])
    run(tiny_bert, task, tiny_text, tmp_path / "a")
    teacher = str(tmp_path / "a" / "tasks" / "toy" / "task_teacher")
    run(tiny_bert, task | {"train": str(other)}, tiny_text, tmp_path / "b", task_teacher=teacher)
    weights = [load_file(tmp_path / name / "tasks" / "toy" / "transfer" / "model.safetensors") for name in "ab"]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
