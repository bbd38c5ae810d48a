"""`corpus.sources` of a recipe: mistakes with their keys, cache keys, and the estimate."""

from contextlib import nullcontext

import pytest

from tests.helpers.mix import corpus_of
from toolkit.core.artifacts import NullProgress
from toolkit.core.errors import UserError
from toolkit.data.corpus import load_corpus
from toolkit.data.corpus.sequences import epoch_items
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.models.load import load_tokenizer
from toolkit.pipeline.estimate.data_volume import corpus_volume
from toolkit.pipeline.graph import plan
from toolkit.pipeline.preflight import check_recipe
from toolkit.pipeline.run import Run
from toolkit.recipe import Recipe
from toolkit.recipe.load import parse_recipe

RECIPE = """\
name: mixed
model: {{source: some/model}}
tasks:
  one: {{train: {one}, dev: {one}}}
  qa: {{kind: question_answering, train: {one}, dev: {one}, columns: [a, b], label: c, max_seq_length: 384}}
corpus:
  sources:
    - {{files: [text.txt], weight: 2}}
    - {second}
teacher: {{train: {{steps: 1}}}}
"""


@pytest.mark.parametrize(
    ("second", "where", "what"),
    [
        ("{tasks: [one], weight: 0}", "corpus.sources.1.weight", "0"),
        ("{tasks: [one], weight: -1}", "corpus.sources.1.weight", "-1"),
        ("{tasks: [two]}", "corpus.sources.1.tasks", "'two' is not under `tasks`"),
        ("{files: [a.txt], shape: pairs}", "corpus.sources.1.files", "a pair is a row of a task"),
        ("{shape: texts}", "corpus.sources.1", "needs `files`, `tasks` or both"),
        ("{tasks: [one], shape: words}", "corpus.sources.1.shape", "words"),
        ("{tasks: [qa], shape: pairs}", "corpus.sources.1.max_seq_length", "windows of 'qa'"),
        ("{files: [a.txt], column: body}", "corpus.sources.1.column", "plain text has no columns"),
    ],
)
def test_a_mistake_in_a_source_is_named_with_its_key(tasks, second, where, what):
    with pytest.raises(UserError) as error:
        parse_recipe(RECIPE.format(one=tasks["one"].train, second=second), "r.yaml")
    assert what in str(error.value)
    assert where in str(error.value).replace("[", ".").replace("]", "")


@pytest.mark.parametrize(
    "key", ["files: [a.txt]", "tasks: [one]", "pack: false", "max_seq_length: 64", "limit: 9", "pairs: {}"]
)
def test_keys_of_the_plain_form_are_refused_beside_sources(tasks, key):
    text = RECIPE.format(one=tasks["one"].train, second="{tasks: [one]}").replace("  sources:", f"  {key}\n  sources:")
    with pytest.raises(UserError, match="has no effect beside `sources`"):
        parse_recipe(text, "r.yaml")


def recipe_of(tiny_bert, corpus, tasks):
    values = {"name": "r", "model": {"source": str(tiny_bert)}, "teacher": {"train": {"epoch": 1}}}
    made = {name: task.model_dump(exclude_unset=True) for name, task in tasks.items()}
    return Recipe.model_validate(values | {"corpus": corpus.model_dump(), "tasks": made})


def test_check_refuses_a_source_with_too_little_text_and_one_that_is_too_long(tiny_bert, tiny_text, tmp_path):
    few = tmp_path / "few.txt"
    few.write_text("\n\n".join("abc"))
    mix = corpus_of({"files": [str(tiny_text)]}, {"files": [str(few)], "shape": "texts"})
    with pytest.raises(UserError, match="too little text: 20 documents are needed") as error:
        check_recipe(recipe_of(tiny_bert, mix, {}))
    assert error.value.where == "corpus.sources.1"
    with pytest.raises(UserError, match="too little text") as error:
        load_corpus(mix, {}, load_tokenizer(tiny_bert), tmp_path / "cache")
    assert error.value.where == "corpus.sources.1"
    long = corpus_of({"files": [str(tiny_text)]}, {"files": [str(tiny_text)], "max_seq_length": 129})
    with pytest.raises(UserError, match="129 is more than the model's 128") as error:
        check_recipe(recipe_of(tiny_bert, long, {}))
    assert error.value.where == "corpus.sources.1"


def test_check_counts_the_paragraphs_of_all_sources(tiny_bert, mix, tasks):
    found = dict(check_recipe(recipe_of(tiny_bert, mix, {n: tasks[n] for n in ("one", "pair")})))
    assert found["corpus"].endswith(" paragraphs")


def test_keys_depend_on_weight_shape_order_and_windows_but_not_on_paths(tiny_bert, tiny_text, tasks, tmp_path):
    moved = tmp_path / "moved.txt"
    moved.write_bytes(tiny_text.read_bytes())
    own = {"one": tasks["one"], "qa": tasks["qa"]}

    def key(*changes, tasks=own, file=tiny_text):
        sources = [{"files": [str(file)]}, {"tasks": ["qa"], "shape": "pairs", "max_seq_length": 100}]
        for number, change in changes:
            sources[number] |= change
        return plan(recipe_of(tiny_bert, corpus_of(*sources), tasks), tmp_path / "run", ResolvedInputs())[0].key

    narrow = tasks["qa"].windows.model_copy(update={"stride": 9})
    narrower = own | {"qa": tasks["qa"].model_copy(update={"windows": narrow})}
    keys = [
        key(),
        key((0, {"weight": 2})),
        key((0, {"shape": "texts"})),
        key((0, {"max_seq_length": 64})),
        key((1, {"tasks": ["qa", "one"]})),
        key((1, {"tasks": ["one", "qa"]})),
        key(tasks=narrower),
    ]
    assert len(set(keys)) == len(keys)
    assert key(file=moved) == key()


def test_the_estimate_of_an_epoch_is_near_what_is_read(tiny_bert, mix, tasks, tmp_path):
    tokenizer = load_tokenizer(tiny_bert)
    text = load_corpus(mix, tasks, tokenizer, tmp_path)
    volume = corpus_volume(mix, tasks, tokenizer)
    assert volume.examples == pytest.approx(epoch_items(text.train), rel=0.08)
    assert volume.batch_length(4) == 48


def test_a_run_on_a_mix_records_each_source(tiny_bert, mix, tasks, tmp_path):
    values = recipe_of(tiny_bert, mix, {n: tasks[n] for n in ("one", "pair")}).model_dump(exclude_none=True)
    values["teacher"] = {"train": {"steps": 5, "batch_size": 2}}
    (manifest,) = Run(Recipe.model_validate(values), tmp_path / "run", lambda step: nullcontext(NullProgress()))()
    recorded = [entry for name, entry in manifest.data.items() if name.startswith("corpus source")]
    assert sum(entry["tokens_seen"] for entry in recorded) == manifest.metrics["tokens_seen"]
    assert sum(entry["train_tokens"] for entry in recorded) == manifest.data["corpus"]["train_tokens"]
    assert manifest.metrics["mlm_loss"] > 0
