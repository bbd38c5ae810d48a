"""Examples that calibrate the ranges of activations."""

import torch

from toolkit.quantization.nncf import calibration_batches


def test_calibration_examples_are_spread_over_the_split():
    def collate(rows):
        return {"input_ids": torch.tensor([[row] for row in rows])}

    def drawn(size, count):
        return [int(batch["input_ids"]) for batch in calibration_batches(collate, list(range(size)), count)]

    assert drawn(100, 4) == [0, 25, 50, 75]
    assert drawn(10, 4) == [0, 2, 5, 7]
    assert drawn(3, 8) == [0, 1, 2]
