"""Recipes from YAML: what loads, what is refused and in which words."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers.recipes import SMALL
from toolkit.core.errors import UserError
from toolkit.recipe import Recipe
from toolkit.recipe.load import dump_recipe, load_recipe, schema_json


def complaint(path: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    return caught.value


def line_of(path: Path, text: str) -> str:
    """`file:line` of the first line that contains `text`."""
    number = next(i for i, line in enumerate(path.read_text().splitlines(), 1) if text in line)
    return f"{path}:{number}"


# --- what loads ---


def test_scientific_notation_without_a_point_is_a_number(write):
    path = write(SMALL.replace("epoch: 3", "epoch: 3\n      optimizer: {AdamW: {learning_rate: 1e-4}}"))
    assert load_recipe(path).student.distillation.train.optimizer.AdamW.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("[no, yes]", ("no", "yes")),
        ("[0, 1]", ("0", "1")),
        ("[01, 1:30]", ("01", "1:30")),
        ("[2024-01-01, 'null']", ("2024-01-01", "null")),
    ],
)
def test_label_names_stay_texts_when_yaml_1_1_would_turn_them_into_something_else(write, written, read):
    path = write(SMALL.replace("dev: dev.tsv", f"dev: dev.tsv\n    labels: {written}"))
    recipe = load_recipe(path)
    assert recipe.tasks["sst2"].labels == read
    assert load_recipe(write(dump_recipe(recipe), "again.yaml")) == recipe


def test_text_that_looks_like_a_number_survives_the_dump(write):
    path = write(SMALL.replace("dev: dev.tsv", "dev: dev.tsv\n    labels: ['1e-4', '1_0', 'true', '2:4', '']"))
    recipe = load_recipe(path)
    assert load_recipe(write(dump_recipe(recipe), "again.yaml")).tasks["sst2"].labels == recipe.tasks["sst2"].labels


def test_n_of_m_pattern_is_a_text_without_quotes(write):
    path = write(SMALL.replace("target_sparsity: 0.9", "target_sparsity: 0.5\n        pattern: 2:4"))
    assert load_recipe(path).student.pruning.approach.weight_compression.pattern == "2:4"


def test_pruner_tag_is_read_as_a_mapping_and_its_values_win(write):
    pruners = "end_step: 50\n        pruners:\n          - !Pruner {prune_type: magnitude, target_sparsity: 0.5}"
    schedule = load_recipe(write(SMALL.replace("end_step: 50", pruners))).student.pruning.approach.weight_compression
    (pruner,) = schedule.resolve()
    assert (pruner.target_sparsity, pruner.end_step) == (0.5, 50)


def test_anchors_and_merge_keys_share_settings(write):
    text = SMALL.replace("train: {steps: 10}", "train: &short {steps: 10, batch_size: 4}")
    recipe = load_recipe(write(text.replace("train: {steps: 5}", "train: {<<: *short, steps: 5}")))
    assert recipe.quantize.distillation.train.batch_size == 4
    assert recipe.quantize.distillation.train.steps == 5


def test_section_with_nothing_in_it_has_its_defaults_and_null_turns_it_off(write):
    recipe = load_recipe(write(SMALL + "export:\nbenchmark: null\n"))
    assert recipe.export is not None
    assert len(recipe.export.variants) == 6
    assert recipe.benchmark is None


def test_key_with_nothing_after_it_keeps_its_default(write):
    recipe = load_recipe(write(SMALL.replace("dev: dev.tsv", "dev: dev.tsv\n    labels:\n    note:")))
    assert recipe.tasks["sst2"].labels == ()
    assert recipe.tasks["sst2"].note == ""


def test_pyyaml_loaders_of_the_process_stay_as_they_are(write):
    load_recipe(write(SMALL))
    assert yaml.safe_load("[no, 1e-4, 2:4]") == [False, "1e-4", 124]
    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.safe_load("!Pruner {a: 1}")


def test_reading_recipes_does_not_import_torch():
    code = "import sys, toolkit.recipe.load; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- files ---


def test_relative_files_are_taken_from_beside_the_recipe_when_they_are_there(write, tmp_path):
    for name in ("train.tsv", "text.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "sparse").mkdir()
    recipe = load_recipe(write(SMALL + "ready: {student: sparse, teacher: some/hub-id}\n"))
    assert recipe.tasks["sst2"].train == str(tmp_path / "train.tsv")
    assert recipe.corpus.files == (str(tmp_path / "text.txt"),)
    assert recipe.ready == {"student": str(tmp_path / "sparse"), "teacher": "some/hub-id"}
    assert recipe.tasks["sst2"].dev == "dev.tsv"  # not there: left for the current directory
    assert recipe.model.source == "some/model"


@pytest.mark.parametrize("name", ["data/small", "./data/small", "../recipes/data/small"])
def test_folder_in_place_of_a_hub_id_is_taken_from_beside_the_recipe(tmp_path, monkeypatch, name):
    (tmp_path / "recipes" / "data" / "small").mkdir(parents=True)
    (tmp_path / "data" / "small").mkdir(parents=True)  # another of that name, in the current directory
    monkeypatch.chdir(tmp_path)
    (path := tmp_path / "recipes" / "recipe.yaml").write_text(
        SMALL.replace("train.tsv", f"hub:{name}::train[:80%]").replace("dev.tsv", "hub:nyu-mll/glue@1a:sst2:validation")
    )
    task = load_recipe(path).tasks["sst2"]
    assert task.train == f"hub:{tmp_path}/recipes/data/small::train[:80%]"
    assert task.dev == "hub:nyu-mll/glue@1a:sst2:validation"


# --- what is refused ---


def test_unknown_key_names_line_path_and_nearest_key(write):
    path = write(SMALL.replace("target_sparsity", "target_sparcity"))
    error = complaint(path)
    assert error.where == line_of(path, "target_sparcity")
    assert "student.pruning.approach.weight_compression.target_sparcity" in error.what
    assert error.instead == "target_sparsity"


def test_key_in_the_wrong_section_names_the_right_one(write):
    error = complaint(write(SMALL.replace("  pruning:\n", "  pruning:\n    target_sparsity: 0.8\n")))
    assert error.instead == "student.pruning.approach.weight_compression.target_sparsity"


def test_misspelt_required_key_is_told_once(write):
    error = complaint(write(SMALL.replace("source:", "sorce:")))
    assert "model.sorce" in error.what
    assert error.instead == "source"
    assert "missing" not in str(error)


@pytest.mark.parametrize(
    ("old", "new", "key", "words", "instead"),
    [
        ("epoch: 3", "steps: many", "student.distillation.train.steps", "an integer > 0, not 'many'", ""),
        ("epoch: 3", "steps: 2.5", "student.distillation.train.steps", "an integer > 0, not 2.5", ""),
        ("epoch: 3", "steps: true", "student.distillation.train.steps", "an integer > 0, not true", ""),
        ("epoch: 3", "steps: 0", "student.distillation.train.steps", "an integer > 0, not 0", ""),
        ("epoch: 3", "steps: [1]", "student.distillation.train.steps", "an integer > 0, not [1]", ""),
        ("sparsity: 0.9", "sparsity: 90", "target_sparsity", "a number >= 0 and < 1, not 90", "0.9"),
        ("sparsity: 0.9", "sparsity: 1", "target_sparsity", "a number >= 0 and < 1, not 1", ""),
        ("sparsity: 0.9", "sparsity: .nan", "target_sparsity", "a number >= 0 and < 1, not .nan", ""),
        ("dev: dev.tsv", "dev: dev.tsv\n    columns: text", "tasks.sst2.columns", "list of 1 to 32 values", "[text]"),
        (
            "dev: dev.tsv",
            "dev: d\n    labels: [true, x]",
            "tasks.sst2.labels[0]",
            "a string, not true",
            '"true", in quotes',
        ),
        (
            "dev: dev.tsv",
            "dev: d\n    metrics: [bleu]",
            "tasks.sst2.metrics[0]",
            "one of accuracy, f1, matthews_correlation, pearson, spearman, exact_match, spearman_cosine, "
            "pearson_cosine, cosine_accuracy, dense_cosine, dense_cosine_p1, f1_micro, f1_macro, average_precision, "
            "ndcg@10, mrr@10, precision, recall, not 'bleu'",
            "",
        ),
        ("name: small", "name: a/b", "name", "a name (letters", ""),
        ("name: small", "name: null", "name", "not null", ""),
        ("epoch: 3", "epoch: 3\n      optimizer: null", "optimizer", "a section (AdamW, Adam, SGD), not null", ""),
    ],
)
def test_wrong_value_is_told_in_words_with_its_line(write, old, new, key, words, instead):
    path = write(SMALL.replace(old, new))
    error = complaint(path)
    assert error.where == line_of(path, new.splitlines()[-1].split(":")[0] + ":" + new.splitlines()[-1].split(":")[1])
    assert f"{key} must be " in error.what
    assert words in error.what
    assert error.instead == instead


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("epoch: 3", "epoch: 3\n      steps: 4", "exactly one of `steps` and `epoch`"),
        ("    dev: dev.tsv\n", "", "exactly one of `dev` and `hold_out`"),
        ("end_step: 50", "end_step: 50\n        start_step: 60", "end_step: must not be before start_step (60)"),
        ("end_step: 50", "end_step: 50\n        initial_sparsity: 0.95", "must not be above target_sparsity (0.9)"),
        ("end_step: 50", "end_step: 50\n        pruners: [{prune_type: pattern_lock}]", "does not prune anything"),
        ("  files: [text.txt]", "  tasks: [other]", "corpus.tasks: 'other' is not under `tasks`"),
        ("  files: [text.txt]", "  limit: 5", "corpus: needs `files`, `tasks` or both"),
        ("corpus:\n  files: [text.txt]\n", "", "student: needs text"),
        ("dev: dev.tsv", "hold_out: {column: film, fraction: 0.25, fold: 4}", "only 4 folds"),
        ("dev: dev.tsv", "dev: dev.tsv\n    label: sentence", "is the label column and cannot be a text column"),
        ("dev: dev.tsv", "dev: dev.tsv\n    labels: [a, a]", "two or more distinct names"),
        ("{source: some/model}", "{source: some/model, prunable: ['(']}", "not a regular expression"),
        (
            "epoch: 3",
            "epoch: 3\n      criterion: {KnowledgeDistillationLoss: {loss_weights: [1, 1]}}",
            "add up to 1",
        ),
        ("target_sparsity: 0.9", "target_sparsity: 0.9\n        pattern: 2:4", "2:4 means a sparsity of 2/4"),
        ("target_sparsity: 0.9", "pattern: 4by1", "unknown pattern '4by1'"),
        ("end_step: 50", "pruners: [{}, {}]", "only one pruner may omit `names`"),
        ("end_step: 50", "pruners: [{names: ['(']}]", "not a regular expression"),
        ("end_step: 50", "pruners: [{names: [a]}, {target_sparsity: 0.9995}]", "max_sparsity_ratio_per_layer"),
        ("epoch: 3", "epoch: 3\n      optimizer: {AdamW: {}, SGD: {learning_rate: 0.1}}", "takes one optimizer"),
        ("epoch: 3", "epoch: 3\n      optimizer: {SGD: {learning_rate: 0.1, nesterov: true}}", "needs a momentum"),
        (
            "epoch: 3",
            "epoch: 3\n      criterion: {IntermediateLayersKnowledgeDistillationLoss: "
            "{layer_mappings: [[a, b]], loss_weights: [1, 1]}}",
            "has 2 values for 1 pairs",
        ),
        (
            "epoch: 3",
            "epoch: 3\n      compile: true\n      criterion: {IntermediateLayersKnowledgeDistillationLoss: "
            "{layer_mappings: [[a, b]]}}",
            "is not supported with a loss on layer outputs",
        ),
        ("transfer:\n", "transfer:\n  pruning: {train: {steps: 1}}\n", "exactly one of `distillation`"),
        ("quantize:\n", "quantize:\n  quantization: {approach: post_training_static_quant}\n", "does not train"),
        (
            "quantize:\n  distillation:\n    train: {steps: 5}",
            "quantize:\n  distillation:\n    train: {steps: 5, compile: true}",
            "cannot be compiled",
        ),
    ],
)
def test_sections_that_make_no_sense_are_refused(write, old, new, words):
    assert old in SMALL
    error = complaint(write(SMALL.replace(old, new)))
    assert words in error.what


def test_task_name_that_cannot_be_a_folder_is_refused(write):
    path = write(SMALL.replace("  sst2:", "  ../sst2:"))
    error = complaint(path)
    assert error.where == line_of(path, "../sst2")
    assert "is not a valid folder name" in error.what


def test_missing_section_says_what_belongs_there(write):
    error = complaint(write(SMALL.replace("model: {source: some/model}", "model:")))
    assert error.what == "`model.source` is missing"
    assert "Hugging Face id" in error.instead


def test_all_mistakes_are_told_together_in_the_order_of_their_lines(write):
    text = SMALL.replace("epoch: 3", "steps: many").replace("source:", "sorce:").replace("dev: dev.tsv", "dve: dev.tsv")
    path = write(text + "exprot: {}\n")
    message = str(complaint(path))
    places = [line_of(path, word) for word in ("sorce", "dve", "many", "exprot")]
    assert message.startswith("4 errors in ")
    assert [line.split(": ")[0] for line in message.splitlines() if line.startswith(str(path))] == places


def test_duplicate_key_is_told_beside_other_mistakes(write):
    path = write(SMALL.replace("epoch: 3", "epoch: 3\n      epoch: none"))
    message = str(complaint(path))
    assert f"duplicate key `epoch`, first defined in line {line_of(path, 'epoch: 3').rpartition(':')[2]}" in message
    assert "must be an integer > 0, not 'none'" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("# only a comment\n", "empty"),
        ("- a\n- b\n", "mapping"),
        ("just words\n", "mapping"),
    ],
)
def test_file_that_is_no_mapping_is_refused(write, text, words):
    error = complaint(write(text))
    assert words in error.what
    assert "pruneofa init" in error.instead


@pytest.mark.parametrize(
    ("text", "line", "instead"),
    [
        ("name: a\nmodel: {source: x\n", 3, ""),
        ("name: a\nmodel:\n\tsource: x\n", 3, "tabs"),
        ("name: a\ndescription: one: two\n", 2, "quotes"),
        ("name: *nowhere\n", 1, ""),
    ],
)
def test_invalid_yaml_names_the_line(write, text, line, instead):
    path = write(text)
    error = complaint(path)
    assert error.where == f"{path}:{line}"
    assert "not valid YAML" in error.what
    assert instead in error.instead


def test_tags_that_make_objects_are_refused(write):
    path = write(SMALL.replace("name: small", "name: !!python/object/apply:os.getcwd []"))
    message = str(complaint(path))
    assert f"{path}:1: unknown tag" in message


def test_anchor_that_contains_itself_is_refused(write):
    assert "contains itself" in str(complaint(write(SMALL.replace("[text.txt]", "&a [*a]"))))


def test_missing_file_names_the_recipes_beside_it(write, tmp_path):
    write(SMALL)
    error = complaint(tmp_path / "recipe.yml")
    assert "no such file" in error.what
    assert error.instead == str(tmp_path / "recipe.yaml")


def test_folder_and_binary_file_are_refused(tmp_path):
    assert "folder" in complaint(tmp_path).what
    (tmp_path / "model.bin").write_bytes(b"\xff\xfe\x00\x81")
    assert "UTF-8" in complaint(tmp_path / "model.bin").what


# --- the schema ---


def test_schema_is_json_and_every_key_is_described():
    schema = json.loads(schema_json())
    sections = {"Recipe": schema, **schema["$defs"]}

    def target(node):
        for branch in (node, *node.get("anyOf", ())):
            if "$ref" in branch:
                return schema["$defs"][branch["$ref"].rpartition("/")[2]]
        return {}

    silent = [
        f"{name}.{key}"
        for name, section in sections.items()
        for key, node in section["properties"].items()
        if len(node.get("description") or target(node).get("description", "")) < 8
    ]
    assert silent == []
    assert schema["$id"] == "urn:pruneofa:recipe:1"


def test_recipe_is_frozen(write):
    recipe = load_recipe(write(SMALL))
    assert isinstance(recipe, Recipe)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3
