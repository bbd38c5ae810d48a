"""The plan of a transfer with examples without labels."""

import pytest

from tests.unit.pipeline.test_estimate import planned, values

__all__ = ["values"]  # a fixture

TEACHER = {"criterion": {"KnowledgeDistillationLoss": {"loss_weights": [0, 1]}}}
OVER_DEV = 120 * 0.32 / 32


def test_texts_of_files_are_trained_on_and_their_logits_are_the_transfers_alone(values, tmp_path):
    values["quantize"]["distillation"]["train"] = {"epoch": 1}
    plain = planned(values, tmp_path)[0]
    (tmp_path / "logs.txt").write_text("".join(f"line {n}\n" for n in range(208)))
    values["transfer"]["distillation"] = {
        "train": {"epoch": 2} | TEACHER,
        "unlabelled": {"files": [str(tmp_path / "logs.txt")]},
    }
    rows = planned(values, tmp_path)[0]
    assert (rows["toy/transfer"].steps, rows["toy/transfer"].exact) == (2 * (432 + 208) / 32, False)
    asked = 640 / 32 * 0.25
    assert rows["toy/transfer"].seconds == pytest.approx(40 * (0.5 + 0.125) + asked + OVER_DEV + 5.0)
    assert rows["toy/task_teacher"].steps == plain["toy/task_teacher"].steps
    assert rows["toy/quantize"].seconds - plain["toy/quantize"].seconds == pytest.approx(432 / 32 * 0.25)


def test_new_pairs_are_counted_at_most_and_their_texts_are_embedded_once(values, tmp_path):
    task = values["tasks"]["toy"]
    for name in ("train", "dev"):
        rows = [f"first {n}\tsecond {n}\t{n % 2}\n" for n in range({"train": 100, "dev": 120}[name])]
        (tmp_path / f"{name}.tsv").write_text("one\ttwo\tlabel\n" + "".join(rows))
        task |= {name: str(tmp_path / f"{name}.tsv"), "columns": ["one", "two"], "tuning_examples": 0}
    values["transfer"]["distillation"] = {"train": {"epoch": 1} | TEACHER, "unlabelled": {"pairs": 2}}
    row = planned(values, tmp_path)[0]["toy/transfer"]
    assert row.steps == -(-(100 + 2 * 200) // 32)
    embedded, asked = 500 / 2 / 2 * 0.32 / 32, 500 / 32 * 0.25
    assert row.seconds == pytest.approx(row.steps * (0.5 + 0.125) + asked + OVER_DEV + embedded + 5.0)
