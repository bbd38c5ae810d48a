"""Devices of the models while `quantize` builds and scores them, tested without a GPU."""

from types import SimpleNamespace

import torch

from toolkit.pipeline.stages import quantize_trials
from toolkit.quantization import nncf
from toolkit.recipe.quantization import Quantization
from toolkit.training import evaluation


class Placed(torch.nn.Linear):
    """Records the device it is moved to, without a GPU."""

    place = "cpu"

    def to(self, device, *_, **__):
        self.place = torch.device(device).type
        return self

    def cpu(self):
        return self.to("cpu")


def test_a_model_that_was_scored_on_a_gpu_is_quantized_beside_its_batches(monkeypatch):
    trials = object.__new__(quantize_trials.Trials)
    trials.plain = Placed(2, 2)
    trials.tokenizer = SimpleNamespace(pad_token_id=0)
    trials.task = SimpleNamespace(tune=None, train=None, tuning_score=lambda logits: 0.5)
    trials._inputs = SimpleNamespace(quantize=SimpleNamespace(quantization=Quantization()))
    trials._context = SimpleNamespace(seed=0)
    monkeypatch.setattr(evaluation, "predict", lambda model, *_: model.to("cuda"))
    monkeypatch.setattr(nncf, "calibration_batches", lambda *_: [])
    monkeypatch.setattr(nncf, "quantized", lambda model, *_: model.place)
    assert trials._score(trials.plain) == 0.5
    assert trials.plain.place == "cuda"
    assert trials._quantized() == "cpu", "calibration batches are made on the CPU"
