"""Names of layers and operations in a recipe are compared with the model before the first stage, without weights."""

import pytest
from transformers import AutoConfig, BertConfig

from tests.helpers.models import load_classifier
from toolkit.core.errors import UserError
from toolkit.models.load import load_tokenizer, model_of_shapes, save_checkpoint
from toolkit.pipeline.module_names import _check_all_layers
from toolkit.pipeline.preflight import check_recipe
from toolkit.quantization.operations import possible_ops, quantizable_ops
from toolkit.recipe import Recipe

LAYER = "bert.encoder.layer.0"
RAMP = {"backend": "magnitude", "approach": {"weight_compression": {"end_step": 2}}}


@pytest.fixture
def check(tiny_bert, tiny_text, tiny_task_files, tmp_path):
    teacher = tmp_path / "teacher"
    save_checkpoint(load_classifier(tiny_bert, ("0", "1")), load_tokenizer(tiny_bert), teacher)

    def run(**changes):
        task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev)}
        task["ready"] = {"task_teacher": str(teacher)}
        values = {"name": "r", "model": {"source": str(tiny_bert)}, "tasks": {"toy": task}}
        values |= {"corpus": {"files": [str(tiny_text)]}}
        return check_recipe(Recipe.model_validate(values | changes))

    return run


def distilled(*mapping, **settings):
    criterion = {"IntermediateLayersKnowledgeDistillationLoss": {"layer_mappings": [mapping], **settings}}
    return {"train": {"steps": 4, "criterion": criterion}}


def student(*mapping, **settings):
    return {"student": {"pruning": RAMP, "distillation": distilled(*mapping, **settings)}}


def quantized(*mapping):
    return student(LAYER, LAYER) | {"transfer": {"distillation": distilled(*mapping)}}


WRONG = [
    ((LAYER, "bert.encoder.layr.1"), "the teacher has no layer 'bert.encoder.layr.1'"),
    (("encoder.layer.0", LAYER), "the student has no layer 'encoder.layer.0'"),
    ((LAYER, 0, LAYER, 5), "has 1 output(s), number 5 does not exist"),
    ((LAYER, f"{LAYER}.intermediate"), "(1, 8, 32), the teacher's of bert.encoder.layer.0.intermediate (1, 8, 64)"),
]


@pytest.mark.parametrize("make", [student, quantized])
@pytest.mark.parametrize(("mapping", "what"), WRONG)
def test_a_pair_of_layers_that_cannot_be_compared_is_found(check, make, mapping, what):
    check(**make(LAYER, LAYER))
    with pytest.raises(UserError) as caught:
        check(**make(*mapping))
    assert what in caught.value.what


def test_all_layers_are_checked_by_number_and_width_alone(check):
    """Without layer_mappings: the names are the toolkit's, so no model is built, and torch is not needed."""
    settings = {"train": {"steps": 4, "criterion": {"IntermediateLayersKnowledgeDistillationLoss": {}}}}
    transfer = {"transfer": {"distillation": settings}}
    shallow = {"student": {"layers": [1], "pruning": RAMP, "distillation": settings}}
    found = dict(check(**shallow, **transfer))
    assert found["student layers"] == "1 of 2"
    assert "6 encoder matrices" in found["prunable"]
    dense = {"student": {"layers": 1, "pruning": None, "distillation": settings}}
    assert dict(check(**dense, **transfer))["student layers"] == "1 of 2, chosen by the run; dense"
    with pytest.raises(UserError, match="there is no layer 2"):
        check(student={"layers": [0, 2], "pruning": RAMP, "distillation": settings})
    wide = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=400)
    with pytest.raises(UserError, match="have 32 features, those of the teacher's 64"):
        _check_all_layers({"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2}, wide.to_dict())


@pytest.mark.parametrize("whole", [False, True])
def test_a_layer_outside_of_the_forward_pass_is_no_key_error(check, whole):
    with pytest.raises(UserError, match="cls of the teacher is not part of" if whole else "cls of the student is not"):
        check(**student("cls", "cls", add_origin_loss=whole))


def test_an_expression_that_matches_no_operation_is_found(check):
    def recipe(name):
        section = {"op_wise": {name: {"weight": {"dtype": "fp32"}}}}
        return quantized(LAYER, LAYER) | {
            "quantize": {"quantization": section | {"approach": "post_training_static_quant"}}
        }

    for name in ("classifier", "word_embeddings", r"attention\.self$", "layer.1.output.dense"):
        check(**recipe(name))
    with pytest.raises(UserError, match="'clasifier' matches no quantizable operation"):
        check(**recipe("clasifier"))


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_the_operations_of_a_model_without_weights_are_those_that_are_traced(kind):
    import torch

    config = AutoConfig.for_model(kind, **SIZES | {"num_hidden_layers": 2}, pad_token_id=0)
    model = model_of_shapes(config.to_dict(), "classification")
    real = type(model)(config).eval()
    sample = {"input_ids": torch.ones((1, 8), dtype=torch.long), "attention_mask": torch.ones((1, 8), dtype=torch.long)}
    traced, possible = quantizable_ops(real, sample), possible_ops(model)
    assert traced.items() <= possible.items()
    assert "MatMul" in traced.values()


SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
