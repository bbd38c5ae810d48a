"""What the pipeline tests share: made-up tasks of every kind, and a recipe whose result several machines compare."""

import csv
import json
import random
import shutil

import pytest

from tests.conftest import ADVERBS, BAD, GOOD, NOUNS, sentence


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """What is asked -> the `tasks` section of a task of 60 training and 30 measured rows."""
    folder = tmp_path_factory.mktemp("kinds")
    rng = random.Random(2)

    def table(name, header, rows):
        path = folder / name
        with path.open("w", newline="") as stream:
            csv.writer(stream, delimiter="\t", quoting=csv.QUOTE_NONE, lineterminator="\n").writerows([header, *rows])
        return str(path)

    def rows(count, label):
        return [(sentence(rng, GOOD), sentence(rng, (GOOD, BAD)[n % 2]), label(n)) for n in range(count)]

    def candidates(count):
        """Four candidates for each query, the first of which is about the same thing."""
        asked = rng.sample(NOUNS, count)
        return [(word, f"{word} {sentence(rng, BAD)}" if n else word, int(n == 0)) for word in asked for n in range(4)]

    def squad(name, count):
        questions = []
        for n in range(count):
            words = rng.sample(NOUNS, 30)
            context, answer = " ".join(words), words[n % 30]
            at = f" {context} ".index(f" {answer} ")
            asked = {"id": str(n), "question": f"who is {answer} ?", "answers": [{"text": answer, "answer_start": at}]}
            questions.append({"context": context, "qas": [asked]})
        path = folder / name
        path.write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": questions}]}))
        return str(path)

    def tagged(name, count):
        """Moods: an adjective with the adverb before it, of two types. Names: two words that no vocabulary has."""
        rows = []
        for n in range(count):
            words = [*sentence(rng, (GOOD, BAD)[n % 2]).split(), *(("zqu", "vex", "told") if n % 3 == 0 else ())]
            tags = ["O"] * len(words)
            for at, word in enumerate(words):
                if kind := next((k for k, known in (("GOOD", GOOD), ("BAD", BAD)) if word in known), None):
                    with_adverb = words[at - 1] in ADVERBS
                    tags[at - with_adverb : at + 1] = [f"B-{kind}", f"I-{kind}"][: 1 + with_adverb]
            if "zqu" in words:
                tags[words.index("zqu") :] = ["B-NAME", "I-NAME", "O"]
            rows.append("".join(f"{word}\t{tag}\n" for word, tag in zip(words, tags, strict=True)))
        (folder / name).write_text("\n".join(rows))
        return str(folder / name)

    pairs = ["one", "two", "label"]
    texts = {"columns": ["one", "two"], "max_seq_length": 32}
    return {
        "classification": texts
        | {
            "train": table("train.tsv", pairs, rows(60, lambda n: ("same", "other", "none")[n % 3])),
            "dev": table("dev.tsv", pairs, rows(30, lambda n: ("same", "other", "none")[n % 3])),
            "more_dev": {"odd": table("odd.tsv", pairs, rows(20, lambda n: ("same", "none")[n % 2]))},
            "labels": ["same", "other", "none"],
            "metrics": ["accuracy", "f1"],
        },
        "regression": texts
        | {
            "kind": "regression",
            "train": table("scores.tsv", pairs, rows(60, lambda n: n % 2 * 4 + rng.random())),
            "dev": table("more_scores.tsv", pairs, rows(30, lambda n: n % 2 * 4 + rng.random())),
            "metrics": ["pearson", "spearman"],
        },
        "question_answering": {
            "preset": "squad",
            "train": squad("train.json", 60),
            "dev": squad("dev.json", 30),
            "max_seq_length": 40,
            "windows": {"stride": 8, "max_question_length": 10},
        },
        "multi_label": texts
        | {
            "kind": "multi_label",
            "train": table("sets.tsv", pairs, rows(60, lambda n: ("same", "none|same", "", "other")[n % 4])),
            "dev": table("more_sets.tsv", pairs, rows(30, lambda n: ("same", "none|same", "other")[n % 3])),
            "metrics": ["f1_micro", "f1_macro", "average_precision"],
        },
        "reranking": texts
        | {
            "kind": "reranking",
            "train": table("candidates.tsv", pairs, candidates(15)),
            "dev": table("more_candidates.tsv", pairs, candidates(10)),
            "ranking": {"group": 2},
            "metrics": ["ndcg@10", "mrr@10"],
        },
        "token_classification": {
            "kind": "token_classification",
            "train": tagged("train.conll", 60),
            "dev": tagged("dev.conll", 30),
            "metrics": ["f1", "precision", "recall"],
            "max_seq_length": 16,
            "windows": {"stride": 4},
        },
        "pair": texts
        | {
            "train": table("pairs.tsv", pairs, rows(60, lambda n: ("same", "other")[n % 2])),
            "dev": table("more_pairs.tsv", pairs, rows(30, lambda n: ("same", "other")[n % 2])),
            "labels": ["same", "other"],
        },
    }


@pytest.fixture(scope="module")
def recipe_file(tiny_bert, tiny_task_files, tiny_text, tmp_path_factory):
    """The tiny recipe up to `quantize`, of a model without dropout: each process draws its own."""
    from tests.integration.test_whole import tiny_recipe
    from toolkit.recipe.load import dump_recipe

    folder = tmp_path_factory.mktemp("recipe")
    model = folder / "model"
    shutil.copytree(tiny_bert, model)
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    # Adam turns rounding of gradients that are nearly zero into whole steps; SGD shows what was really different.
    optimizer = {"SGD": {"learning_rate": 0.02, "momentum": 0.9}}
    train = {"steps": 30, "batch_size": 8, "log_every": 4, "checkpoint_every": 5, "optimizer": optimizer}
    lesson = {"train": train | {"gradient_accumulation_steps": 2}}
    task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev), "max_seq_length": 16}
    compression = {"target_sparsity": 0.7, "end_step": 20, "update_frequency_on_step": 4}
    recipe = tiny_recipe(
        model,
        task,
        tiny_text,
        teacher={"train": train},
        student={
            "pruning": {"backend": "magnitude", "approach": {"weight_compression": compression}},
            "distillation": lesson | {"positions": {"sample": 0.4}},
        },
        task_teacher={"train": train},
        transfer={"distillation": lesson},
        quantize={"quantization": {"calibration": {"sampling_size": 8}}, "distillation": lesson},
        export=None,
        benchmark=None,
    )
    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    return path
