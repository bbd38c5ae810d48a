"""Several training files as one split, a file that is both train and dev, and questions without an answer."""

import json
from pathlib import Path

import pytest

from toolkit.core.errors import UserError
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.data.task_rows import check_rows, read_task, repeated_files
from toolkit.pipeline.cache_keys import data_hashes
from toolkit.pipeline.estimate.data_volume import task_volume
from toolkit.pipeline.preflight import check_recipe
from toolkit.recipe import Corpus, Recipe, Task
from toolkit.recipe.load import dump_recipe, load_recipe
from toolkit.recipe.references import corpus_files


def asked(number: int, *answers: str) -> dict:
    context = f"alpha beta {number}"
    found = {"text": list(answers), "answer_start": [context.index(a) for a in answers]}
    return {"id": f"q{number}", "question": "which ?", "context": context, "answers": found}


def squad_v2(rows: list[dict]) -> dict:
    questions = [
        {
            "id": row["id"],
            "question": row["question"],
            "answers": [{"text": t, "answer_start": s} for t, s in zip(*row["answers"].values(), strict=True)],
            "is_impossible": not row["answers"]["text"],
        }
        for row in rows
    ]
    return {
        "version": "v2.0",
        "data": [{"title": "t", "paragraphs": [{"context": rows[0]["context"], "qas": questions}]}],
    }


@pytest.mark.parametrize("form", [squad_v2, lambda rows: {"data": rows}, lambda rows: rows])
def test_questions_without_an_answer_are_left_out_when_asked_else_the_key_is_named(tmp_path, form):
    rows = [asked(0, "alpha"), asked(0), asked(0, "beta"), asked(0)]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(form(rows)))
    section = Task(preset="squad", train=str(path), dev=str(path))
    with pytest.raises(UserError, match="the question has no answer") as error:
        check_rows("qa", section)
    assert error.value.instead.endswith("drop_unanswerable: true")
    found = check_rows("qa", section.model_copy(update={"drop_unanswerable": True}))
    assert found.startswith("2 training rows, 2 evaluation rows")
    assert "2 rows without an answer left out (first: squad.json" in found


def test_a_file_with_no_answers_at_all_is_refused(tmp_path):
    path = tmp_path / "squad.json"
    path.write_text(json.dumps([asked(0), asked(1)]))
    section = Task(preset="squad", train=str(path), dev=str(path), drop_unanswerable=True)
    with pytest.raises(UserError, match="no question has an answer"):
        check_rows("qa", section)


def table(path, *sentences: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("sentence\tlabel\n" + "".join(f"{s}\t{n % 2}\n" for n, s in enumerate(sentences)))
    return str(path)


@pytest.mark.parametrize("train", ["[a.tsv, parts/b.tsv]", "parts/*.tsv", "[a.tsv, 'parts/[bc].tsv']"])
def test_several_training_files_are_one_split(tmp_path, train):
    table(tmp_path / "a.tsv", "one", "two")
    table(tmp_path / "parts" / "b.tsv", "three", "four")
    table(tmp_path / "parts" / "c.tsv", "five", "six")
    table(tmp_path / "dev.tsv", "seven", "eight")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: r\nmodel: {{source: m}}\ntasks: {{toy: {{train: {train}, dev: dev.tsv}}}}\n")
    loaded = load_recipe(recipe)
    section = loaded.tasks["toy"]
    wanted = {"[a.tsv, parts/b.tsv]": "ab", "[a.tsv, 'parts/[bc].tsv']": "abc"}.get(train, "bc")
    texts = {"a": ["one", "two"], "b": ["three", "four"], "c": ["five", "six"]}
    assert [row.texts[0] for row in read_task("toy", section).train] == [t for name in wanted for t in texts[name]]
    assert task_volume(section).examples == 2 * len(wanted)
    assert check_rows("toy", section).startswith(f"{2 * len(wanted)} training rows, 2 evaluation rows")
    assert load_recipe_again(loaded, tmp_path) == loaded
    assert [Path(f).name for f in corpus_files(Corpus(tasks=("toy",)), loaded.tasks)] == [f"{n}.tsv" for n in wanted]


def load_recipe_again(loaded, folder):
    (folder / "saved.yaml").write_text(dump_recipe(loaded))
    return load_recipe(folder / "saved.yaml")


def test_every_training_file_is_in_the_key(tmp_path):
    paths = [table(tmp_path / f"{name}.tsv", name, "two") for name in "abc"]
    roles = []
    for more in ((), (paths[1],), (paths[2],)):
        section = Task(train=paths[0], more_train=more, dev=paths[2])
        roles.append(json.dumps(data_hashes({"task": section}, ResolvedInputs())[1]))
    assert len(set(roles)) == 3


@pytest.mark.parametrize("dev", ["a.tsv", "copy.tsv"])
def test_a_dev_file_that_is_a_training_file_is_told(tmp_path, dev):
    train = table(tmp_path / "a.tsv", "one", "two")
    table(tmp_path / "copy.tsv", "one", "two")
    message = "dev is a training file, so its scores are those of memorised examples"
    assert repeated_files(Task(train=train, dev=str(tmp_path / dev))) == [message]
    other = table(tmp_path / "other.tsv", "six", "ten")
    assert repeated_files(Task(train=train, dev=other)) == []
    found = repeated_files(Task(train=train, dev=other, more_dev={"more": str(tmp_path / dev)}))
    assert found == [message.replace("dev", "more")]


def test_check_tells_of_a_dev_file_that_is_a_training_file(tiny_bert, tmp_path):
    task = {"train": (train := table(tmp_path / "a.tsv", "one", "two")), "dev": train}
    recipe = Recipe.model_validate({"name": "r", "model": {"source": str(tiny_bert)}, "tasks": {"toy": task}})
    assert ("", "dev is a training file, so its scores are those of memorised examples") in check_recipe(recipe)
