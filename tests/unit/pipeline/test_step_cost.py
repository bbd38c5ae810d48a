"""Cost of training steps, measured on tiny models."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from toolkit.core.errors import UserError


def shape(tiny_bert: Path, layers: int, **changes: Any) -> Any:
    from toolkit.pipeline.estimate.synthetic_step import StepShape
    from toolkit.recipe import DistillationTrain

    config = json.loads((tiny_bert / "config.json").read_text()) | {"num_hidden_layers": layers}
    values = {"kind": None, "length": 16, "longest": 24, "train": DistillationTrain(steps=1, batch_size=4)} | changes
    return StepShape(json.dumps(config), json.dumps(config), **values)


LAYERS_LOSS = {
    "IntermediateLayersKnowledgeDistillationLoss": {
        "layer_mappings": [[f"bert.encoder.layer.{n}", f"bert.encoder.layer.{n}"] for n in range(5)]
    }
}


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": None},
        {"kind": None, "positions": "all"},
        {"kind": None, "criterion": LAYERS_LOSS},
        {"kind": "classification"},
        {"kind": "regression"},
        {"kind": "question_answering"},
        {"kind": "classification", "precision": "bf16"},
    ],
    ids=str,
)
def test_two_layers_predict_the_size_and_memory_of_five(tiny_bert, changes):
    from toolkit.pipeline.estimate import step_cost, synthetic_step
    from toolkit.recipe import DistillationTrain

    train = {"steps": 1, "batch_size": 4} | {k: v for k, v in changes.items() if k in ("criterion", "precision")}
    rest = {k: v for k, v in changes.items() if k not in train}
    wanted = shape(tiny_bert, 5, train=DistillationTrain.model_validate(train), **rest)
    cost = step_cost.measure(wanted, seconds=0.1)
    whole = synthetic_step.SyntheticStep(wanted, 5)
    assert cost.parameters == whole.parameters
    assert cost.state_bytes == 16 * whole.parameters  # weights, gradients, two values of AdamW
    assert cost.teacher_bytes == 4 * whole.teacher_parameters
    assert cost.fixed_bytes + 4 * cost.example_bytes == pytest.approx(whole.kept_bytes(4), rel=0.02)
    assert cost.teacher_seconds > 0
    assert cost.without_teacher().step_seconds(1) < cost.step_seconds(1) < cost.step_seconds(2)


def test_layers_that_run_again_are_measured_with_less_memory_for_the_same_weights(tiny_bert):
    from toolkit.pipeline.estimate import step_cost
    from toolkit.recipe import DistillationTrain

    again = DistillationTrain(steps=1, batch_size=4, recompute=True)
    plain, other = (step_cost.measure(s, 0.1) for s in (shape(tiny_bert, 5), shape(tiny_bert, 5, train=again)))
    assert other.example_bytes < 0.5 * plain.example_bytes
    assert (other.parameters, other.state_bytes) == (plain.parameters, plain.state_bytes)


def test_a_training_without_dropout_is_measured_without_its_memory(tiny_bert):
    from toolkit.pipeline.estimate import synthetic_step
    from toolkit.recipe import DistillationTrain

    without = DistillationTrain(steps=1, batch_size=4, dropout=0)
    plain, other = (synthetic_step.SyntheticStep(shape(tiny_bert, 5, **o), 5) for o in ({}, {"train": without}))
    assert other.kept_bytes(4) < 0.95 * plain.kept_bytes(4)


def test_the_encoder_of_a_measured_step_is_compiled_and_that_of_an_evaluation_is_not(tiny_bert, monkeypatch):
    from torch import nn

    from toolkit.pipeline.estimate import synthetic_step
    from toolkit.recipe import DistillationTrain

    calls = []

    def compiled(module: nn.Module) -> None:
        def call(*inputs: Any, **named: Any) -> Any:
            calls.append(type(module).__name__)
            return module._call_impl(*inputs, **named)

        module._compiled_call_impl = call

    monkeypatch.setattr(nn.Module, "compile", compiled)
    job = synthetic_step.SyntheticStep(shape(tiny_bert, 1, train=DistillationTrain(steps=1, compile=True)), 1)
    job.step(2)
    assert calls == ["BertModel"], "the student's, not its teacher's"
    job.forward(2)
    assert len(calls) == 1


def test_quantized_steps_are_measured_with_fake_quantization(tiny_bert):
    from toolkit.pipeline.estimate import step_cost

    plain = step_cost.measure(shape(tiny_bert, 3, kind="classification"), seconds=0.1)
    quantized = step_cost.measure(shape(tiny_bert, 3, kind="classification", quantized=True), seconds=0.1)
    assert quantized.parameters > plain.parameters  # the ranges are trained too
    assert quantized.example_bytes > plain.example_bytes


def test_an_architecture_that_transformers_does_not_know_is_refused(tiny_bert):
    from toolkit.pipeline.estimate import step_cost

    wanted = shape(tiny_bert, 2)
    unknown = json.dumps(json.loads(wanted.config) | {"model_type": "berd"})
    with pytest.raises(UserError, match="berd"):
        step_cost.measure(replace(wanted, config=unknown), seconds=0.1)


@pytest.mark.parametrize("changes", [{"hidden_act": "none"}, {"hidden_dropout_prob": 2}, {"num_attention_heads": 3}])
def test_a_config_of_which_transformers_can_build_no_model_is_refused(tiny_bert, changes):
    from toolkit.pipeline.estimate.synthetic_step import SyntheticStep

    wanted = shape(tiny_bert, 1)
    config = json.dumps(json.loads(wanted.config) | changes)
    with pytest.raises(UserError, match="transformers can build no model from this config"):
        SyntheticStep(replace(wanted, config=config), 1)


def test_a_smaller_batch_is_extrapolated_to_the_full_one():
    from toolkit.pipeline.estimate.step_cost import _extrapolate

    # 1 s whatever the batch, and 0.5 s an example, in each layer
    seconds = {(layers, n): layers * (1 + 0.5 * n) for layers in (1, 2) for n in (4, 8)}
    assert _extrapolate(seconds, 6, 32) == pytest.approx(6 * (1 + 0.5 * 32))
    assert _extrapolate({(1, 8): 5.0, (2, 8): 10.0}, 6, 32) == pytest.approx(6 * 5.0 * 4)
    assert _extrapolate({(1, 4): 5.0, (1, 8): 4.0, (2, 4): 9.0, (2, 8): 9.0}, 1, 32) == pytest.approx(
        4 + 24 * 4 / 8 / 4
    )  # noise
