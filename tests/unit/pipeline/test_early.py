"""What a stage would refuse is refused before the first stage: inputs, variants, ramps, locks, processes."""

import shutil

import pytest

from tests.helpers.models import load_classifier
from toolkit.core.errors import UserError
from toolkit.data.resolved_inputs import ResolvedInputs, ResolvedModel
from toolkit.models.load import load_tokenizer, save_checkpoint
from toolkit.pipeline.preflight import check_recipe
from toolkit.pipeline.run import Run
from toolkit.recipe import Recipe
from toolkit.training import distributed

RAMP = {"start_step": 0, "end_step": 4, "pruners": [{"names": ["layer.0"]}, {"names": ["layer.1"]}]}


@pytest.fixture
def recipe(tiny_bert, tiny_task_files, tiny_text):
    def make(ready=None, **changes):
        task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev), "ready": ready or {}}
        values = {"name": "r", "model": {"source": str(tiny_bert)}, "tasks": {"toy": task}}
        return Recipe.model_validate(values | changes)

    return make


def pruned(**compression):
    pruning = {"approach": {"weight_compression": RAMP | compression}, "train": {"steps": 8}}
    return {"transfer": {"pruning": pruning | {"learning_rate_rewinding": True}}}


def test_a_stage_without_its_input_is_found_by_check(recipe):
    distilled = {"transfer": {"pruning": pruned()["transfer"]["pruning"] | {"train": None}}}
    distilled["transfer"]["distillation"] = {"train": {"steps": 8}}
    with pytest.raises(UserError, match="stage `transfer` of task 'toy' needs `task_teacher`"):
        check_recipe(recipe(**distilled))
    check_recipe(recipe(**distilled, task_teacher={"train": {"steps": 1}}))
    with pytest.raises(UserError, match="needs `task_teacher`, which no stage provides"):
        check_recipe(recipe(export={}))
    with pytest.raises(UserError, match="needs `export`"):
        check_recipe(recipe(benchmark={}))


def test_an_export_whose_variants_have_no_model_is_found_by_check(recipe):
    trained = {"task_teacher": {"train": {"steps": 1}}}
    check_recipe(recipe(**trained, export={"variants": ["dense-fp32", "sparse-int8"]}))
    with pytest.raises(UserError, match="none of sparse-int8 has a model in this run") as caught:
        check_recipe(recipe(**trained, export={"variants": ["sparse-int8"]}))
    assert caught.value.instead.startswith("variants: [dense-fp32, dense-int8]")


def test_ramps_without_a_common_learning_rate_are_found_by_check(recipe):
    check_recipe(recipe(**pruned()))
    others = [{"names": ["layer.0"], "end_step": 3}, {"names": ["layer.1"]}]
    with pytest.raises(UserError, match="the pruners prune at different steps"):
        check_recipe(recipe(**pruned(pruners=others)))


def test_a_ramp_in_steps_is_held_against_a_training_in_epochs(recipe):
    def section(end):
        made = pruned(end_step=end)
        made["transfer"]["pruning"] |= {"train": {"epoch": 2, "batch_size": 100}, "learning_rate_rewinding": False}
        return made

    check_recipe(recipe(**section(9)))  # 432 rows to train on: 5 steps an epoch
    with pytest.raises(UserError, match="start of step 10, but the training has only 10 steps"):
        check_recipe(recipe(**section(10)))


def test_a_lock_of_dense_matrices_beside_a_pruner_is_found_by_check(recipe):
    mixed = [{"names": ["layer.0"]}, {"names": ["layer.1"], "prune_type": "pattern_lock"}]
    with pytest.raises(UserError, match=r"selects 6 matrices without zeros, e\.g\. bert\.encoder\.layer\.1"):
        check_recipe(recipe(**pruned(pruners=mixed)))


def test_whole_word_masking_needs_a_tokenizer_that_marks_words(recipe, tiny_bert, tiny_text, tmp_path):
    from transformers import BertTokenizer

    corpus = {"corpus": {"files": [str(tiny_text)], "whole_word_masking": True}, "teacher": {"train": {"steps": 1}}}
    check_recipe(recipe(**corpus))
    tokenizer = load_tokenizer(tiny_bert)
    words = {word.replace("##", "//"): number for word, number in tokenizer.get_vocab().items()}
    folder = tmp_path / "odd"
    save_checkpoint(load_classifier(tiny_bert, ("0", "1")), BertTokenizer(vocab=words), folder)
    with pytest.raises(UserError, match="does not mark which pieces begin a word"):
        check_recipe(recipe(**corpus, model={"source": str(folder)}))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (
            {"task_teacher": {"train": {"steps": 1, "batch_size": 3}}},
            "a batch of 3 cannot be divided among 2",
        ),
        (
            {"quantize": {"quantization": {"train": {"steps": 1}}, "tuning": {"retrain_steps": 2}}},
            "retraining of trials",
        ),
    ],
)
def test_settings_that_processes_cannot_share_end_the_run_before_its_first_stage(
    recipe, tiny_bert, tmp_path, monkeypatch, changes, what
):
    save_checkpoint(load_classifier(tiny_bert, ("0", "1")), load_tokenizer(tiny_bert), tmp_path / "model")
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    made = []
    monkeypatch.setattr(Run, "_make", lambda *_: made.append(1))
    ready = {"transfer": str(tmp_path / "model")} if "quantize" in changes else {}
    with pytest.raises(UserError, match=what):
        Run(recipe(ready, **changes), tmp_path / "run", lambda step: None)()
    assert not made


def test_a_model_that_the_run_has_just_downloaded_is_checked_before_the_first_stage(
    recipe, tiny_bert, tmp_path, monkeypatch
):
    shutil.copytree(tiny_bert, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    snapshot = ResolvedModel("owner/name", tmp_path / "model")
    inputs = ResolvedInputs(fetch=True, _models={"owner/name": snapshot})
    job = recipe(model={"source": "owner/name"}, task_teacher={"train": {"steps": 1}})
    check_recipe(job)  # nothing is known of it yet
    monkeypatch.setattr(Run, "_make", lambda *_: pytest.fail("a stage has run"))
    with pytest.raises(UserError, match="no tokenizer in this folder"):
        Run(job, tmp_path / "run", lambda step: None, inputs=inputs)()
