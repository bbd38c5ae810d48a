"""Published model sizes against the models, and offline checks of all shipped recipes."""

import pytest
import torch
import transformers

from toolkit.core import paths
from toolkit.data.published import published_rows
from toolkit.models.architectures import matrix_shapes
from toolkit.models.load import prunable_matrices
from toolkit.models.published import CONFIGS, published_config
from toolkit.pipeline.preflight import check_recipe
from toolkit.recipe import VARIANTS
from toolkit.recipe.load import load_recipe
from toolkit.recipe.presets import PRESETS

SHIPPED = paths.RECIPES
# Without INC's own files, and the recipes whose files are the user's.
USERS = {SHIPPED / "template.yaml", SHIPPED / "embedding/all_minilm_80.yaml"}
RECIPES = sorted(p for p in SHIPPED.rglob("*.yaml") if p.parent.name != "inc" and p not in USERS)
_OURS = "reconstructed"  # in the name of recipes of the paper's models with this project's settings
PAPER = [p for p in RECIPES if p.parent.name in ("bert_base", "bert_large", "distilbert") and _OURS not in p.stem]


@pytest.mark.parametrize(
    ("source", "auto", "weights"),
    [
        ("google-bert/bert-base-uncased", transformers.AutoModelForMaskedLM, 84_934_656),
        ("google-bert/bert-large-uncased", transformers.AutoModelForQuestionAnswering, 301_989_888),
        ("distilbert/distilbert-base-uncased", transformers.AutoModelForSequenceClassification, 42_467_328),
        ("FacebookAI/roberta-base", transformers.AutoModelForMaskedLM, 84_934_656),
        ("google/electra-base-discriminator", transformers.AutoModelForSequenceClassification, 84_934_656),
    ],
)
def test_known_matrices_are_those_that_pruning_finds_in_the_model(source, auto, weights):
    sizes = CONFIGS[source]
    config = transformers.AutoConfig.for_model(**sizes)
    with torch.device("meta"):
        found = prunable_matrices(auto.from_config(config))
    shapes = {name: tuple(module.weight.shape) for name, module in found.items()}
    assert matrix_shapes(sizes) == shapes
    assert sum(rows * columns for rows, columns in shapes.values()) == weights


def test_neither_a_revision_nor_an_id_without_its_owner_changes_what_is_known():
    assert published_config("bert-base-uncased") is CONFIGS["google-bert/bert-base-uncased"]
    assert published_config("uncased") is None
    assert published_config("google-bert/bert-base-uncased@main") is CONFIGS["google-bert/bert-base-uncased"]
    assert published_config("somebody/else") is None


def test_rows_of_every_public_split_are_known():
    specs = [str(p[key]) for p in PRESETS.values() for key in ("train", "dev") if key in p]
    assert len(specs) > len(PRESETS)
    assert all(map(published_rows, specs))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(SHIPPED)))
def test_every_shipped_recipe_checks_without_a_network(path, request):
    if path.parent.name in ("minilm", "reranking", "tokens"):
        request.getfixturevalue("shared_data")
    found = dict(check_recipe(load_recipe(path)))
    assert found["recipe"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(SHIPPED)))
def test_question_answering_is_timed_on_whole_windows(path):
    recipe = load_recipe(path)
    for name, task in recipe.tasks.items():
        if task.kind == "question_answering":
            timed = recipe.section("benchmark", name).evaluation.performance
            assert timed.sequence_length == task.max_seq_length
            assert timed.batch_sizes == (1, 8)


def warmup_and_decay(train) -> tuple[float, float]:
    return train.warmup_ratio, train.optimizer.settings.weight_decay


@pytest.mark.parametrize("model", ["bert_base", "bert_large", "distilbert"])
@pytest.mark.parametrize("percent", [85, 90])
def test_each_model_of_the_paper_has_a_recipe_for_each_sparsity(model, percent):
    path = SHIPPED / model / f"{percent}.yaml"
    assert path in PAPER
    assert load_recipe(path).name == f"{model.replace('_', '-')}-{percent}"


@pytest.mark.parametrize("path", PAPER, ids=lambda p: str(p.relative_to(SHIPPED)))
def test_recipe_of_the_paper_has_its_settings(path):
    recipe = load_recipe(path)
    assert list(recipe.tasks) == ["sst2", "mnli", "qqp", "qnli", "squad"]
    glue, squad = recipe.section("transfer", "mnli").train, recipe.section("transfer", "squad").train
    rate = 1.8e-4 if path.parent.name == "distilbert" else 1.5e-4
    assert (glue.epoch, glue.batch_size, glue.optimizer.settings.learning_rate) == (9, 32, 1e-4)
    assert (squad.epoch, squad.batch_size, squad.optimizer.settings.learning_rate) == (8, 12, rate)
    assert squad.criterion.logits.loss_weights == (0.0, 1.0)
    quantize = {task: recipe.section("quantize", task).train for task in recipe.tasks}
    assert [quantize[task].epoch for task in ("mnli", "squad")] == [3, 2]
    assert {train.optimizer.settings.learning_rate for train in quantize.values()} == {1e-5}
    # (warm-up, weight decay): of SQuAD they are published for DistilBERT; of the rest only those of pre-training.
    own = {("transfer", "squad"): (0.05, 0.01), ("quantize", "squad"): (0.1, 0.0)}
    for stage in ("task_teacher", "transfer", "quantize"):
        for task in recipe.tasks:
            expected = own.get((stage, task), (0.01, 0.01)) if path.parent.name == "distilbert" else (0.01, 0.01)
            assert warmup_and_decay(recipe.section(stage, task).train) == expected, (stage, task)
    assert (recipe.tasks["squad"].max_seq_length, recipe.tasks["squad"].windows.stride) == (384, 128)
    assert {task.tuning_examples for task in recipe.tasks.values()} == {0}  # every operation in INT8, on all rows
    assert recipe.section("quantize", "squad").quantization.model_wise.weight.granularity == "per_tensor"
    assert recipe.export.variants == tuple(VARIANTS)
    if path.name.startswith("transfer"):
        assert recipe.ready["student"].startswith("Intel/")
        return
    train, pruning = recipe.student.distillation.train, recipe.student.pruning
    (pruner,) = pruning.approach.weight_compression.resolve(steps_per_epoch=0)
    assert train.steps == recipe.teacher.train.steps == 100_000
    assert warmup_and_decay(train) == warmup_and_decay(recipe.teacher.train) == (0.01, 0.01)
    assert train.batch_size * train.gradient_accumulation_steps == 256
    assert (pruner.start_step, pruner.end_step, pruner.update_frequency_on_step) == (0, 50_000, 1000)
    assert f"{pruner.target_sparsity:.2f}" == f"0.{path.stem}"
    assert pruning.learning_rate_rewinding
    assert train.criterion.logits.loss_weights == (0.5, 0.5)
    assert (recipe.corpus.pairs is not None) == (path.parent.name != "distilbert")
