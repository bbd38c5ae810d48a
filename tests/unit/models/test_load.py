"""Loading, saving and the choice of matrices, on tiny models with random weights."""

import json
import re
import shutil

import pytest
import torch
import transformers

from tests.helpers.models import load_classifier
from toolkit.core.errors import UserError
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.models.architectures import is_in_layer
from toolkit.models.load import load_masked_lm, load_task_model, load_tokenizer, prunable_matrices, save_checkpoint
from toolkit.models.mlm_heads import mlm_head
from toolkit.pipeline.preflight import prunable_shapes
from toolkit.recipe import Recipe
from toolkit.sparsity.mask import SparsityMask, checkpoint_mask
from toolkit.sparsity.mask_file import MASK_FILE, require_fitting_mask

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
MASKED_LMS = {
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**SMALL)),
    "roberta": lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**SMALL)),
    "electra": lambda: transformers.ElectraForMaskedLM(transformers.ElectraConfig(**SMALL, embedding_size=8)),
    "albert": lambda: transformers.AlbertForMaskedLM(transformers.AlbertConfig(**SMALL, embedding_size=8)),
    "distilbert": lambda: transformers.DistilBertForMaskedLM(
        transformers.DistilBertConfig(
            vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=32
        )
    ),
}


@pytest.mark.parametrize("architecture", MASKED_LMS)
def test_mlm_head_on_gathered_states_gives_the_models_own_logits(architecture):
    model = MASKED_LMS[architecture]().eval()
    ids = torch.randint(5, 50, (3, 7))
    chosen = torch.zeros(3, 7, dtype=torch.bool)
    chosen[0, 2] = chosen[2, 6] = True
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        gathered = mlm_head(model)(model.base_model(input_ids=ids)[0][chosen])
    torch.testing.assert_close(gathered, whole[chosen])


def test_a_model_without_a_known_head_is_a_user_error():
    with pytest.raises(UserError, match="head of this BertModel is not supported"):
        mlm_head(transformers.BertModel(transformers.BertConfig(**SMALL)))


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra", "distilbert"])
def test_prunable_are_the_six_matrices_of_every_layer(architecture):
    model = MASKED_LMS[architecture]()
    matrices = prunable_matrices(model)
    assert len(matrices) == 12
    parameters = dict(model.named_parameters())
    for name, module in matrices.items():
        assert parameters[name] is module.weight
        assert re.search(r"layer\.\d\.", name)


@pytest.mark.parametrize("architecture", MASKED_LMS)
def test_check_finds_the_same_matrices_in_the_files_as_pruning_finds_in_the_model(architecture, tmp_path):
    model = MASKED_LMS[architecture]()
    model.save_pretrained(tmp_path)
    recipe = Recipe.model_validate({"name": "r", "model": {"source": str(tmp_path)}})
    found = prunable_matrices(model)
    assert prunable_shapes(recipe, ResolvedInputs().model(str(tmp_path))) == {
        name: tuple(m.weight.shape) for name, m in found.items()
    }


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("bert.encoder.layer.11.attention.self.query.weight", True),
        ("distilbert.transformer.layer.0.ffn.lin1", True),
        ("encoder.layers.3.fc1.weight", True),
        ("albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight", True),
        ("bert.encoder.layer.0.attention.self.distance_embedding.weight", False),
        ("bert.embeddings.word_embeddings.weight", False),
        ("bert.pooler.dense.weight", False),
        ("cls.predictions.transform.dense.weight", False),
        ("players.0.weight", False),
    ],
)
def test_part_of_an_encoder_layer_is_told_by_its_name(name, part):
    assert is_in_layer(name) == part


def test_prunable_names_are_the_same_under_every_head(tiny_bert):
    masked_lm, classifier = load_masked_lm(tiny_bert), load_classifier(tiny_bert, ["a", "b"])
    names = list(prunable_matrices(masked_lm))
    assert names == list(prunable_matrices(classifier))
    assert names[0] == "bert.encoder.layer.0.attention.self.query.weight"
    assert not [n for n in names if re.search("embeddings|pooler|cls|classifier", n)]


def test_patterns_choose_among_the_encoders_matrices(tiny_bert):
    model = load_masked_lm(tiny_bert)
    chosen = prunable_matrices(model, [r"layer\.0\..*query", r"layer\.1\.intermediate"])
    assert list(chosen) == [
        "bert.encoder.layer.0.attention.self.query.weight",
        "bert.encoder.layer.1.intermediate.dense.weight",
    ]


def test_a_pattern_that_matches_nothing_is_a_user_error_even_beside_one_that_does(tiny_bert):
    model = load_masked_lm(tiny_bert)
    for hopeless in ("no_such_layer", "embeddings", "cls"):
        with pytest.raises(UserError, match="matches no linear layer") as error:
            prunable_matrices(model, ["query", hopeless])
        assert repr(hopeless) in error.value.what


def test_a_model_without_encoder_layers_is_a_user_error():
    model = MASKED_LMS["bert"]()
    model.bert.encoder.layer = torch.nn.ModuleList()
    with pytest.raises(UserError, match="can be pruned"):
        prunable_matrices(model)


def test_classifier_gets_the_tasks_labels_and_a_head_from_the_seed(tiny_bert):
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(load_classifier(tiny_bert, ["bad", "good", "odd"]))
    assert made[0].config.id2label == {0: "bad", 1: "good", 2: "odd"}
    assert made[0].config.label2id == {"bad": 0, "good": 1, "odd": 2}
    weights = [m.classifier.weight for m in made]
    assert weights[0].shape == (3, 32)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("training", [True, False])
def test_attention_is_the_fused_one(tiny_bert, training, monkeypatch):
    """`scaled_dot_product_attention`, which takes a GPU's flash kernels; not products and softmax one by one."""
    calls, real = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    for model in (load_masked_lm(tiny_bert), load_classifier(tiny_bert, ("a", "b"))):
        calls.clear()
        model.train(training)(input_ids=torch.randint(5, 50, (2, 6)))
        assert len(calls) == model.config.num_hidden_layers


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_with_a_weight_that_is_not_finite_is_a_user_error(tiny_bert, tmp_path, value):
    model = load_masked_lm(tiny_bert)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[3, 5] = value
    save_checkpoint(model, load_tokenizer(tiny_bert), tmp_path)
    with pytest.raises(UserError, match=r"1 of the model's tensors .*NaN or infinite, e\.g\. bert\.encoder\.layer\.1"):
        load_masked_lm(tmp_path)


def test_code_in_a_checkpoint_is_neither_run_nor_offered(tiny_bert, tmp_path, monkeypatch):
    """transformers asks on the terminal whether to run it, and takes `y` for an answer."""
    copy, mark = tmp_path / "copy", tmp_path / "mark"
    shutil.copytree(tiny_bert, copy)
    lines = ["class C(BertConfig): model_type = 'odd'", "class M(BertForMaskedLM): config_class = C"]
    code = [
        "from pathlib import Path",
        "from transformers import BertConfig, BertForMaskedLM",
        f"Path({str(mark)!r}).touch()",
        *lines,
    ]
    (copy / "own.py").write_text("\n".join(code))
    own = {"AutoConfig": "own.C", "AutoModelForMaskedLM": "own.M", "AutoTokenizer": ["own.T", "own.T"]}
    config = json.loads((copy / "config.json").read_text()) | {"model_type": "odd", "auto_map": own}
    (copy / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    load_tokenizer(copy)
    for load in (load_masked_lm, lambda folder: load_classifier(folder, ["a", "b"])):
        with pytest.raises(UserError, match="cannot be loaded"):
            load(copy)
    assert not mark.exists()


def test_saved_classifier_comes_back_whole_and_only_for_its_own_classes(tiny_bert, tmp_path):
    model, tokenizer = load_classifier(tiny_bert, ["bad", "good"]), load_tokenizer(tiny_bert)
    save_checkpoint(model, tokenizer, tmp_path)
    again = load_classifier(tmp_path, ["bad", "good"])
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    for labels in (["bad", "good", "odd"], ["good", "worse"]):
        with pytest.raises(UserError, match="classes are bad, good; the task's are"):
            load_classifier(tmp_path, labels)


@pytest.mark.parametrize(
    ("kind", "labels", "head"),
    [
        ("classification", ["a", "b"], "classifier"),
        ("regression", [], "classifier"),
        ("question_answering", [], "qa_outputs"),
    ],
)
def test_fitted_checkpoint_must_have_the_head_of_its_task(tiny_bert, tmp_path, kind, labels, head):
    with pytest.raises(UserError, match=f"was not trained for the task: it lacks {head}"):
        load_task_model(tiny_bert, kind, labels, fitted=True)
    made = load_task_model(tiny_bert, kind, labels, fitted=False)
    save_checkpoint(made, load_tokenizer(tiny_bert), tmp_path)
    again = load_task_model(tmp_path, kind, labels, fitted=True)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("pairs", [False, True])
def test_fitted_masked_lm_must_have_its_vocabulary_head_only(tiny_bert, tmp_path, pairs):
    whole = load_masked_lm(tiny_bert, pairs=pairs, fitted=True)
    save_checkpoint(whole.bert, load_tokenizer(tiny_bert), tmp_path)
    with pytest.raises(UserError, match=r"it lacks cls\.predictions") as caught:
        load_masked_lm(tmp_path, pairs=pairs, fitted=True)
    assert "or a `teacher` section" in caught.value.instead
    assert load_masked_lm(tmp_path, pairs=pairs).cls.predictions


def test_loading_and_saving_say_nothing_and_leave_transformers_settings_alone(tiny_bert, tmp_path, capfd):
    before = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    tokenizer = load_tokenizer(tiny_bert)
    save_checkpoint(load_classifier(tiny_bert, ["a", "b"]), tokenizer, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert before == (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled())


def test_checkpoint_mask_comes_from_the_file_or_from_the_zeros(tiny_bert, tmp_path):
    model, tokenizer = load_masked_lm(tiny_bert), load_tokenizer(tiny_bert)
    matrices = prunable_matrices(model)
    with torch.no_grad():
        for module in matrices.values():
            module.weight[module.weight.abs() < 0.02] = 0.0
    mask = SparsityMask.from_zeros({n: m.weight for n, m in matrices.items()})
    save_checkpoint(model, tokenizer, tmp_path)
    mask.save(tmp_path / MASK_FILE)
    loaded = prunable_matrices(load_classifier(tmp_path, ["a", "b"]))
    from_file = checkpoint_mask(tmp_path, loaded)
    (tmp_path / "mask.safetensors").unlink()
    from_zeros = checkpoint_mask(tmp_path, loaded)
    for name, kept in mask.tensors.items():
        assert torch.equal(from_file.tensors[name], kept)
        assert torch.equal(from_zeros.tensors[name], kept)


def test_mask_of_a_dense_checkpoint_is_a_user_error(tiny_bert):
    with pytest.raises(UserError, match="is dense"):
        checkpoint_mask(tiny_bert, prunable_matrices(load_masked_lm(tiny_bert)))


def test_mask_that_belongs_to_other_weights_is_a_user_error(tiny_bert, tmp_path):
    model, tokenizer = load_masked_lm(tiny_bert), load_tokenizer(tiny_bert)
    matrices = prunable_matrices(model)
    none_kept = SparsityMask({n: torch.zeros_like(m.weight, dtype=torch.bool) for n, m in matrices.items()})
    save_checkpoint(model, tokenizer, tmp_path)
    none_kept.save(tmp_path / MASK_FILE)
    with pytest.raises(UserError, match="does not fit the weights"):
        checkpoint_mask(tmp_path, matrices)


@pytest.mark.parametrize("listed", [0, 0.5])
def test_a_mask_file_that_leaves_out_sparse_matrices_is_found_before_and_when_it_is_used(tiny_bert, tmp_path, listed):
    model = load_masked_lm(tiny_bert)
    matrices = prunable_matrices(model)
    with torch.no_grad():
        for module in matrices.values():
            module.weight[module.weight.abs() < 0.02] = 0.0
    save_checkpoint(model, load_tokenizer(tiny_bert), tmp_path)
    whole = SparsityMask.from_zeros({n: m.weight for n, m in matrices.items()})
    whole.save(tmp_path / MASK_FILE)
    require_fitting_mask(tmp_path, matrices)
    SparsityMask(dict(list(whole.tensors.items())[: int(listed * len(matrices))])).save(tmp_path / MASK_FILE)
    for use in (checkpoint_mask, require_fitting_mask):
        with pytest.raises(UserError, match="the mask does not list it") as caught:
            use(tmp_path, matrices)
        assert caught.value.where == str(tmp_path / MASK_FILE)


def test_saved_tokenizer_does_not_depend_on_what_was_tokenised_before(tiny_bert, tmp_path):
    model = load_masked_lm(tiny_bert)
    for folder, length in (("a", 8), ("b", 16)):
        tokenizer = load_tokenizer(tiny_bert)
        tokenizer(["some text"], truncation=True, max_length=length, padding="max_length")
        save_checkpoint(model, tokenizer, tmp_path / folder)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()
