"""INC's files as recipes: what each section becomes, what flags do, and that nothing in a file is lost."""

from dataclasses import replace

import pytest

from toolkit.core import paths
from toolkit.core.errors import UserError
from toolkit.recipe import Recipe
from toolkit.recipe.inc import IncFlags, explain, read_inc
from toolkit.recipe.load import load_recipe, parse_recipe

CONFIGS = paths.RECIPES / "inc"
SHIPPED = sorted(CONFIGS.glob("*.yaml"))
FLAGS = IncFlags(model="m", task="sst2", train_file="train.tsv", validation_file="dev.tsv")
TAUGHT = IncFlags(model="m", teacher="t", task="sst2", train_file="train.tsv", validation_file="dev.tsv")
HEAD = "model: {name: x, framework: pytorch}\n"
LOCK = HEAD + "pruning: {approach: {weight_compression: {pruners: [!Pruner {prune_type: pattern_lock}]}}}\n"
QAT = HEAD + "quantization: {approach: quant_aware_training}\n"
KD = HEAD + "distillation: {train: {criterion: {KnowledgeDistillationLoss: {temperature: 3.0}}}}\n"


@pytest.fixture
def read(tmp_path):
    """Plan and recipe of INC texts."""

    def read(*texts: str, flags: IncFlags = FLAGS, overrides: tuple[str, ...] = ()):
        paths = [tmp_path / f"file{number}.yaml" for number in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text)
        plan = read_inc(paths, flags)
        return plan, parse_recipe(explain(plan), "explained", overrides)

    return read


# --- which stages, which model ---


def test_a_lock_becomes_a_transfer_of_a_sparse_model(read):
    _, recipe = read(LOCK)
    assert recipe.ready == {"student": "m"}
    assert recipe.transfer.pruning.locks_all
    assert (recipe.transfer.train.epoch, recipe.transfer.train.batch_size) == (9, 32)
    assert recipe.transfer.train.optimizer.settings.learning_rate == 1e-4
    assert recipe.quantize is None
    assert recipe.export is not None
    assert recipe.benchmark is not None


def test_other_pruners_prune_the_dense_model_on_the_task(read):
    plan, recipe = read(HEAD + "pruning: {approach: {weight_compression: {target_sparsity: 0.8}}}\n")
    assert recipe.ready == {}
    compression = recipe.transfer.pruning.approach.weight_compression
    (pruner,) = compression.resolve(10)
    assert (pruner.prune_type, pruner.target_sparsity, pruner.prune_domain) == ("basic_magnitude", 0.8, "global")
    assert (pruner.start_step, pruner.end_step, pruner.update_frequency_on_step) == (0, 40, 10)
    assert (pruner.sparsity_decay_type, pruner.max_sparsity_ratio_per_layer) == ("exp", 0.98)
    assert recipe.transfer.pruning.learning_rate_rewinding is False
    assert plan.origin["transfer", "pruning", "approach", "weight_compression", "prune_domain"] == "INC's default"


def test_quantization_alone_takes_a_model_that_knows_the_task(read):
    _, recipe = read(QAT)
    assert recipe.transfer is None
    assert recipe.tasks["sst2"].ready == {"transfer": "m"}
    assert (recipe.quantize.train.epoch, recipe.quantize.train.optimizer.settings.learning_rate) == (3, 1e-5)
    assert recipe.quantize.tuning.accuracy_criterion.relative == 0.01


def test_incs_three_files_become_one_taught_recipe(read):
    _, recipe = read(LOCK, QAT, KD, flags=TAUGHT)
    assert recipe.tasks["sst2"].ready == {"task_teacher": "t"}
    for stage in (recipe.transfer, recipe.quantize):
        settings = stage.distillation.train.criterion.logits
        assert (settings.temperature, settings.loss_types, settings.loss_weights) == (3.0, ("CE", "CE"), (0.5, 0.5))


def test_a_teacher_without_a_distillation_section_teaches_as_the_scripts_did(read):
    flags = IncFlags(**{**vars(TAUGHT), "temperature": 2.0, "loss_weights": (0.0, 1.0)})
    _, recipe = read(LOCK, flags=flags)
    settings = recipe.transfer.distillation.train.criterion.logits
    assert (settings.temperature, settings.loss_weights) == (2.0, (0.0, 1.0))


def test_the_seed_is_the_first_that_is_written_and_others_are_told(read):
    plan, recipe = read(LOCK + "tuning: {random_seed: 7}\n", QAT + "tuning: {random_seed: 8}\n")
    assert recipe.seed == 7
    assert any("tuning.random_seed" in note and "file1.yaml:3" in note for note in plan.notes)
    assert read(LOCK)[1].seed == 1978
    assert read(LOCK, flags=IncFlags(**{**vars(FLAGS), "seed": 5}))[1].seed == 5


def test_a_criterion_in_a_file_that_quantizes_nothing_is_told(read):
    plan, recipe = read(LOCK + "tuning: {accuracy_criterion: {relative: 0.2}}\n", QAT)
    assert recipe.quantize.tuning.accuracy_criterion.relative == 0.01
    assert any(
        "tuning.accuracy_criterion.relative: this file has no quantization section" in note for note in plan.notes
    )


@pytest.mark.parametrize(
    ("task", "columns", "metrics"),
    [
        ("sst2", ("sentence",), ("accuracy",)),
        ("MNLI", ("premise", "hypothesis"), ("accuracy",)),
        ("qqp", ("question1", "question2"), ("accuracy", "f1")),
        ("mine", ("sentence",), ("accuracy",)),
    ],
)
def test_tasks_of_glue_have_their_columns_and_metrics(read, task, columns, metrics):
    _, recipe = read(LOCK, flags=IncFlags(**{**vars(FLAGS), "task": task}))
    assert (recipe.tasks[task].columns, recipe.tasks[task].metrics) == (columns, metrics)


# --- training ---


def test_flags_win_over_files_and_say_so(read):
    text = LOCK.replace("pruning: {", "pruning: {train: {epoch: 4, optimizer: {SGD: {learning_rate: 0.1}}}, ")
    plan, recipe = read(text, QAT, flags=IncFlags(**{**vars(FLAGS), "num_train_epochs": 2, "learning_rate": 0.5}))
    assert recipe.transfer.train.epoch == 2
    assert recipe.transfer.train.optimizer.SGD.learning_rate == 0.5
    assert recipe.quantize.train.epoch == 3
    told = "\n".join(plan.notes)
    assert "epoch: --num-train-epochs takes precedence" in told
    assert "for quantize use overrides such as quantize.quantization.train.epoch=3" in told


def test_iterations_of_an_epoch_make_steps_and_a_span_of_epochs_their_number(read):
    train = "train: {start_epoch: 1, end_epoch: 4, iteration: 50}, "
    assert read(LOCK.replace("pruning: {", "pruning: {" + train))[1].transfer.train.steps == 150
    assert (
        read(LOCK.replace("pruning: {", "pruning: {train: {start_epoch: 0, end_epoch: 4}, "))[1].transfer.train.epoch
        == 4
    )


def test_layers_are_compared_as_incs_section_says(read):
    text = HEAD + (
        "distillation: {train: {criterion: {IntermediateLayersKnowledgeDistillationLoss: "
        "{layer_mappings: [[a, b], [c, '1', d, '0']], loss_types: [MSE, KL], loss_weights: [1, 2], "
        "add_origin_loss: true}}}}\n"
    )
    _, recipe = read(LOCK, text, flags=TAUGHT)
    settings = recipe.transfer.distillation.train.criterion.layers
    assert settings.pairs(tuple) == [("a", 0, "b", 0, "MSE", 1.0), ("c", 1, "d", 0, "KL", 2.0)]
    assert settings.add_origin_loss


# --- pruning ---


def test_steps_names_and_parameters_of_pruners_arrive(read):
    text = HEAD + (
        "pruning:\n  approach:\n    weight_compression_pytorch:\n"
        "      end_step: 100\n      not_to_prune_names: ['layer.0']\n      pattern: 4x1\n      pruners:\n"
        "        - !Pruner {prune_type: snip_momentum, names: [attention], start_step: 10, target_sparsity: 0.5}\n"
        "        - !Pruner {prune_type: group_lasso, parameters: {alpha: 6e-4, pattern: tile_pattern_1x16}}\n"
    )
    _, recipe = read(text)
    first, second = recipe.transfer.pruning.approach.weight_compression.resolve()
    assert (first.prune_type, first.names, first.start_step, first.target_sparsity) == (
        "snip_momentum", ("attention",), 10, 0.5,
    )  # fmt: skip
    assert (first.pattern, first.exclude_names) == ("tile_pattern_4x1", ("layer.0",))
    assert (second.prune_type, second.alpha, second.pattern, second.end_step) == (
        "group_lasso", 6e-4, "tile_pattern_1x16", 100,
    )  # fmt: skip


def test_n_of_m_says_its_sparsity_itself(read):
    text = HEAD + 'pruning: {approach: {weight_compression_pytorch: {pattern: "2:4", end_step: 10}}}\n'
    plan, recipe = read(text)
    (pruner,) = recipe.transfer.pruning.approach.weight_compression.resolve()
    assert pruner.target_sparsity == 0.5
    assert "implied by 2:4" in plan.origin.values()


def test_cube_stays_incs_cube(read):
    _, recipe = read(HEAD + "pruning: {approach: {weight_compression: {sparsity_decay_type: cube}}}\n")
    assert recipe.transfer.pruning.approach.weight_compression.sparsity_decay_type == "cube"


# --- quantization and tuning ---


def test_formats_by_model_type_and_operation_arrive_and_other_candidates_are_told(read):
    text = HEAD + (
        "quantization:\n"
        "  approach: post_training_static_quant\n"
        "  calibration: {sampling_size: '100, 200'}\n"
        "  model_wise: {weight: {granularity: [per_tensor, per_channel], bit: 7.0}, activation: {scheme: sym}}\n"
        "  optype_wise: {MatMul: {activation: {dtype: [fp32]}}}\n"
        "  op_wise: {'layer.0': {weight: {dtype: [bf16]}, activation: {dtype: [bf16]}}}\n"
        "  recipes: {fast_bias_correction: true}\n"
    )
    plan, recipe = read(text)
    section = recipe.quantize.quantization
    assert section.calibration.sampling_size == 100
    assert (section.model_wise.weight.granularity, section.model_wise.weight.bit) == ("per_tensor", 7)
    assert section.model_wise.activation.scheme == "sym"
    assert section.wanted("bert.layer.0.x", "Linear").weight.dtype == "fp32"
    assert section.wanted("bert.layer.1.x", "MatMul").activation.dtype == "fp32"
    assert section.recipes.fast_bias_correction is True
    told = "\n".join(plan.notes)
    assert "sampling_size: only the first value, 100, is used" in told
    assert "granularity: per_channel: per_tensor is used" in told
    assert "dtype: bf16: the operation is kept in FP32" in told


def test_the_search_is_told_what_incs_tuning_says(read):
    tuning = (
        'tuning: {accuracy_criterion: {relative: "2%"}, objective: footprint, '
        "exit_policy: {timeout: 60, max_trials: 9}, workspace: {path: ./ws}}\n"
    )
    plan, recipe = read(QAT + tuning)
    assert recipe.quantize.tuning.accuracy_criterion.relative == pytest.approx(0.02)
    assert recipe.quantize.tuning.objective == "footprint"
    assert (recipe.quantize.tuning.exit_policy.timeout, recipe.quantize.tuning.exit_policy.max_trials) == (60, 9)
    assert plan.run_folder == "./ws"
    only = read(QAT + "tuning: {exit_policy: {performance_only: true}}\n")[1]
    assert only.quantize.tuning.exit_policy.max_trials == 1


def test_cores_and_instances_go_to_the_benchmark(read):
    text = QAT + "evaluation: {performance: {configs: {cores_per_instance: 4, num_of_instance: 2}}}\n"
    configs = read(text)[1].benchmark.evaluation.performance.configs
    assert (configs.cores_per_instance, configs.num_of_instance) == (4, 2)


STATIC = QAT.replace("quant_aware_training", "post_training_static_quant")


@pytest.mark.parametrize(
    ("text", "flags", "told"),
    [
        (STATIC, {"learning_rate": 0.1}, "--learning-rate: no stage trains"),
        (
            QAT + "tuning: {exit_policy: {performance_only: true, max_trials: 9}}\n",
            {},
            "performance_only implies one trial",
        ),
        (QAT + "tuning: {multi_objectives: {objective: [modelsize], weight: [1]}}\n", {}, "multi_objectives.weight"),
        (LOCK, {"temperature": 2.0}, "there is no --teacher"),
    ],
)
def test_keys_and_flags_that_others_overrule_are_told(read, text, flags, told):
    plan, _ = read(text, flags=IncFlags(**{**vars(FLAGS), **flags}))
    assert any(told in note for note in plan.notes)


def test_classes_of_glue_are_in_their_own_order_so_that_a_teacher_means_the_same(read):
    _, recipe = read(LOCK, flags=IncFlags(**{**vars(FLAGS), "task": "mnli-mm"}))
    assert recipe.tasks["mnli-mm"].labels == ("entailment", "neutral", "contradiction")
    assert recipe.tasks["mnli-mm"].columns == ("premise", "hypothesis")


def test_public_task_needs_no_files_and_mm_is_the_mismatched_split(read):
    flags = {**vars(FLAGS), "train_file": None, "validation_file": None}
    _, recipe = read(LOCK, flags=IncFlags(**{**flags, "task": "mnli-mm"}))
    assert recipe.tasks["mnli-mm"].train == "hub:nyu-mll/glue:mnli:train"
    assert recipe.tasks["mnli-mm"].dev == "hub:nyu-mll/glue:mnli:validation_mismatched"
    _, recipe = read(LOCK, flags=IncFlags(**{**flags, "task": "squad"}))
    assert (recipe.tasks["squad"].kind, recipe.tasks["squad"].max_seq_length) == ("question_answering", 384)


def test_squad_f1_is_the_metric_of_squad_and_of_no_other_task(read):
    text = LOCK + "evaluation: {accuracy: {metric: {SquadF1: {}}}}\n"
    _, recipe = read(text, flags=IncFlags(**{**vars(FLAGS), "task": "squad"}))
    assert recipe.tasks["squad"].metrics == ("f1", "exact_match")
    with pytest.raises(UserError, match="not supported for classification"):
        read(text, flags=FLAGS)


# --- explained ---


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_file_is_explained_as_a_recipe_that_loads(path, tmp_path):
    plan = read_inc([path], IncFlags(), placeholders=True)
    saved = tmp_path / "recipe.yaml"
    saved.write_text(explain(plan))
    assert load_recipe(saved) == Recipe.model_validate(plan.recipe)


def test_the_explanation_says_where_a_value_comes_from_and_what_back_ends_do(read):
    plan, _ = read(HEAD + "pruning: {approach: {weight_compression: {pattern: tile_pattern_4x1}}}\n" + QAT[len(HEAD) :])
    text = explain(plan)
    assert "pattern: tile_pattern_4x1" in text
    assert "file0.yaml:2" in text
    assert "inc: supported; nncf: no support for pattern 'tile_pattern_4x1'; magnitude: supported" in text
    assert "implemented by NNCF" in text
    assert "# ignored: " not in text


def test_a_key_with_line_breaks_in_it_breaks_no_comment(read):
    plan, recipe = read(LOCK + 'evaluation: {accuracy: {dataloader: {dataset: {"a\\u2028b\\nc": 1}}}}\n')
    assert len(plan.notes) == 1
    assert recipe.transfer is not None


# --- forms of published files ---

LOSS = "IntermediateLayersKnowledgeDistillationLoss"
LAYERS = f"distillation: {{train: {{criterion: {{{LOSS}: {{layer_mappings: [PAIR]}}}}}}}}\n"
LAYER, OTHER = "bert.encoder.layer.0", "bert.encoder.layer.1"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (f"[{LAYER}]", (LAYER, LAYER)),
        (LAYER, (LAYER, LAYER)),
        (f"[[{LAYER}]]", (LAYER, LAYER)),
        (f"[{LAYER}, {OTHER}]", (LAYER, OTHER)),
        (f"[[{LAYER}], [{OTHER}]]", (LAYER, OTHER)),
        (f"[[{LAYER}, 1]]", (LAYER, 1, LAYER, 1)),
        (f'[[{LAYER}, ""], [{OTHER}, "1"]]', (LAYER, 0, OTHER, 1)),
        (f"[{LAYER}, 0, {OTHER}, 1]", (LAYER, 0, OTHER, 1)),
    ],
)
def test_every_form_of_a_layer_mapping_is_understood(read, written, meant):
    _, recipe = read(LOCK + LAYERS.replace("PAIR", written), flags=TAUGHT)
    assert recipe.transfer.train.criterion.layers.layer_mappings == (meant,)


@pytest.mark.parametrize("written", ["[]", "[[]]", "[a, b, c]", "{a: b}", "[[a], [b], [c]]", "[a, x, b, y]"])
def test_other_forms_of_a_layer_mapping_are_refused(read, written):
    with pytest.raises(UserError, match="layer_mappings"):
        read(LOCK + LAYERS.replace("PAIR", written), flags=TAUGHT)


def test_the_default_configuration_of_other_modules_is_told_as_ignored(read):
    fp32 = "{weight: {dtype: [fp32]}, activation: {dtype: [fp32]}}"
    named = f"{{default_qconfig: {fp32}, {LAYER}: {fp32}}}"
    plan, recipe = read(HEAD + f"quantization: {{approach: quant_aware_training, op_wise: {named}}}\n")
    assert list(recipe.quantize.quantization.op_wise) == [LAYER]
    assert any("op_wise.default_qconfig: every operation that is quantized has a format" in n for n in plan.notes)


# --- kinds of tasks ---


@pytest.mark.parametrize(
    ("flags", "metric", "expected"),
    [
        ({"kind": "embedding", "columns": ("one", "two"), "label": "score"}, "", ("embedding", ("one", "two"), None)),
        ({"kind": "reranking"}, "", ("reranking", ("query", "passage"), ("ndcg@10",))),
        ({"kind": "token_classification"}, "F1", ("token_classification", ("tokens",), ("f1",))),
        ({"kind": "multi_label"}, "F1", ("multi_label", ("sentence",), ("f1_micro", "f1_macro"))),
        ({"kind": "multi_label", "columns": ("text",)}, "", ("multi_label", ("text",), ("f1_micro",))),
        ({"task": "stsb", "kind": "embedding"}, "", ("embedding", ("sentence1", "sentence2"), None)),
        ({"task": "conll2003"}, "F1", ("token_classification", ("tokens",), ("f1",))),
        ({"task": "wnut_17"}, "", ("token_classification", ("tokens",), ("f1",))),
        ({"task": "ms_marco"}, "", ("reranking", ("query", "positive", "negative"), ("ndcg@10",))),
    ],
)
def test_a_task_of_each_kind_has_its_columns_and_metrics(read, flags, metric, expected):
    text = LOCK + (f"evaluation: {{accuracy: {{metric: {{{metric}: {{}}}}}}}}\n" if metric else "")
    _, recipe = read(text, flags=replace(FLAGS, **({"task": "mine"} | flags)))
    (task,) = recipe.tasks.values()
    kind, columns, metrics = expected
    assert (task.kind, task.columns) == (kind, columns)
    assert task.metrics == (metrics or ("spearman_cosine", "dense_cosine", "dense_cosine_p1"))


def test_texts_without_labels_are_distilled_from_the_dense_model(read):
    flags = replace(TAUGHT, task="mine", kind="embedding", loss_weights=(0.0, 1.0))
    _, recipe = read(LOCK + KD.removeprefix(HEAD), flags=flags)
    assert recipe.tasks["mine"].metrics == ("dense_cosine", "dense_cosine_p1")
    assert recipe.tasks["mine"].ready == {"task_teacher": "t"}
    assert recipe.transfer.distillation.train.criterion.KnowledgeDistillationLoss.loss_weights == (0.0, 1.0)


@pytest.mark.parametrize(
    ("kind", "used"), [("embedding", False), ("reranking", False), ("regression", False), ("multi_label", True)]
)
def test_a_temperature_is_told_as_ignored_where_distances_are_compared(read, kind, used):
    flags = replace(TAUGHT, task="mine", kind=kind, columns=("query", "passage"), temperature=3.0)
    plan, recipe = read(LOCK + KD.removeprefix(HEAD), flags=flags)
    settings = recipe.transfer.distillation.train.criterion.KnowledgeDistillationLoss
    assert (settings.temperature == 3.0) == used
    assert any("compares distances" in note and "temperature" in note for note in plan.notes) != used


@pytest.mark.parametrize("kind", ["embedding", "reranking", "token_classification", "multi_label"])
def test_accuracy_is_the_metric_of_no_other_kind(read, kind):
    text = LOCK + "evaluation: {accuracy: {metric: {topk: 1}}}\n"
    with pytest.raises(UserError, match=f"not supported for {kind.replace('_', ' ')}") as error:
        read(text, flags=replace(FLAGS, task="mine", kind=kind))
    assert error.value.where.endswith("file0.yaml:3")


def test_an_unknown_kind_is_an_error_at_its_flag(read):
    with pytest.raises(UserError, match="kind must be one of") as error:
        read(LOCK, flags=replace(FLAGS, task="mine", kind="ranking"))
    assert "--kind" in error.value.where
