"""Tags of words: forms of files, schemes, refusals by row, alignment to word pieces, windows, and seqeval's F1."""

import json
import random

import numpy as np
import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaTokenizer

from tests.helpers.mix import corpus_of
from toolkit.core.errors import UserError
from toolkit.data.corpus import load_corpus
from toolkit.data.kinds import entities
from toolkit.data.kinds.token_classification import UNTAGGED
from toolkit.data.task_kinds import score
from toolkit.data.task_rows import check_rows, read_task
from toolkit.data.tasks import load_task
from toolkit.models.load import load_tokenizer
from toolkit.recipe import Task

CONLL = "-DOCSTART- -X- O\n\nbar NN B-PER\nbal NN I-PER\ntold NN O\n\n-DOCSTART- -X- O\n\nmoving NN B-LOC\n. . O\n"
WORDS = [["bar", "bal", "told"], ["moving", "."]]
TAGS = [["B-PER", "I-PER", "O"], ["B-LOC", "O"]]
SPANS = [[[0, 7, "PER"]], [{"start": 0, "end": 6, "label": "LOC"}]]


def lines(*columns) -> str:
    return "".join(json.dumps(dict(row)) + "\n" for row in zip(*columns, strict=True))


def named(name, values):
    return [(name, value) for value in values]


@pytest.fixture
def task(tmp_path):
    def made(text=CONLL, name="file.conll", dev=None, **keys):
        (tmp_path / name).write_text(text)
        (tmp_path / f"dev-{name}").write_text(dev or text)
        files = {"train": str(tmp_path / name), "dev": str(tmp_path / f"dev-{name}")}
        return Task.model_validate({"kind": "token_classification", "max_seq_length": 32} | files | keys)

    return made


FORMS = {
    "blanks": (CONLL, "file.conll", {}),
    "tabs": (CONLL.replace(" ", "\t"), "file.tsv", {}),
    "other columns": (
        "B-PER bar x\nI-PER bal x\nO told x\n\n\nB-LOC moving x\nO . x",
        "f",
        {"columns": ["2"], "label": "1"},
    ),
    "lists": (lines(named("tokens", WORDS), named("tags", TAGS)), "file.jsonl", {}),
    "numbers": (
        lines(named("tokens", WORDS), named("ner_tags", [[1, 2, 0], [3, 0]])),
        "file.jsonl",
        {"label": "ner_tags", "labels": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]},
    ),
    "spans": (
        lines(named("text", map(" ".join, WORDS)), named("entities", SPANS)),
        "file.jsonl",
        {"columns": ["text"], "label": "entities"},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_texts_and_tags(form, task):
    text, name, keys = FORMS[form]
    rows = read_task("toy", task(text, name, **keys)).dev[""]
    assert [row.texts for row in rows] == [("bar bal told",), ("moving .",)]
    for row, words, tags in zip(rows, WORDS, TAGS, strict=True):
        assert [row.texts[0][start:end] for start, end in row.label.spans] == words
        assert list(row.label.tags) == tags


def test_check_counts_the_entities_and_labels_may_be_types_or_tags(task):
    wanted = "2 training rows, 2 evaluation rows; entities LOC (1), PER (1)"
    assert check_rows("toy", task()) == wanted
    assert check_rows("toy", task(labels=["LOC", "PER"])) == wanted
    tags = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    assert read_task("toy", task(labels=tags)).labels == tuple(tags)
    assert read_task("toy", task()).labels == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def in_scheme(found: list[tuple[int, int, str]], length: int, scheme: str) -> list[str]:
    """Tags of entities (first word, last word, type) of a sentence, by each scheme's own definition."""
    tags = ["O"] * length
    ends = {"IOBES": "ES", "BILOU": "LU"}.get(scheme, "")
    after = {(last, kind) for _, last, kind in found}
    for first, last, kind in found:
        begin = "B" if scheme != "IOB1" or (first - 1, kind) in after else "I"
        prefixes = [begin] + ["I"] * (last - first)
        if ends:
            prefixes = [ends[1]] if first == last else [*prefixes[:-1], ends[0]]
        tags[first : last + 1] = [f"{prefix}-{kind}" for prefix in prefixes]
    return tags


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "IOBES", "BILOU"])
def test_every_scheme_is_read_as_iob2(scheme, declared, task):
    rng = random.Random(0)
    sentences = []
    for _ in range(30):
        at, found = 0, []
        while at < 9:
            last = min(9, at + rng.randrange(3))
            if rng.random() < 0.6:
                found.append((at, last, rng.choice(["PER", "LOC"])))
            at = last + 1
        sentences.append(found)
    written = [in_scheme(found, 10, scheme) for found in sentences]
    text = "\n".join("".join(f"bar {tag}\n" for tag in tags) for tags in written)
    assert written != [in_scheme(found, 10, "IOB2") for found in sentences] or scheme == "IOB2"
    rows = read_task("toy", task(text, **({"scheme": scheme} if declared else {}))).dev[""]
    assert [list(row.label.tags) for row in rows] == [in_scheme(found, 10, "IOB2") for found in sentences]


def table(tokens, tags) -> str:
    return lines(named("tokens", [tokens, ["bar"]]), named("tags", [tags, ["B-X"]]))


def text_with(entities_, text="bar told") -> str:
    return lines(named("text", [text]), named("entities", [entities_]))


TEXT = {"columns": ["text"], "label": "entities"}


@pytest.mark.parametrize(
    ("text", "keys", "expected"),
    [
        ("bar B-X\na O\nbal I-X\n", {"scheme": "IOB2"}, r"conll:3: I-X after O cannot be in IOB2 \(as declared\)"),
        ("bar B-X\na O\nbal I-X\n", {}, r"conll:3: I-X after O cannot be in IOB2 \(as detected from this file\)"),
        ("bar B-X\nbal I-Y\n", {}, "conll:2: I-Y after B-X cannot be in IOB2"),
        ("bar O\nbal E-X\n", {}, r"conll:2: E-X after O cannot be in IOBES .*the entity has no first word"),
        ("bar B-X\nbal O\na S-X\n", {}, "conll:2: O after B-X cannot be in IOBES .*the entity before has no last word"),
        ("bar S-X\nbal I-X\n", {}, "conll:2: I-X after S-X cannot be in IOBES"),
        ("bar U-X\nbal B-X\n", {}, "conll:2: the sentence ends in B-X, within an entity of BILOU"),
        ("bar O\nbal B-X\n", {"scheme": "IOB1"}, "conll:2: B-X after O cannot be in IOB1"),
        ("bar S-X\n", {"scheme": "IOB2"}, "conll:1: S-X after the beginning of a sentence .*: it has no S"),
        ("bar PER\n", {}, "conll:1: 'PER' is not a tag"),
        ("bar B-\n", {}, "conll:1: 'B-' is not a tag"),
        ("bar O\n\nbal\n", {}, "conll:3: the token 'bal' has no tag"),
        ("bar O\nbal x O\n", {}, "conll:2: 3 fields, where the lines before have 2"),
        ("\tO\nbal\tB-X\n", {}, "conll:1: the token is empty"),
        ("bar O\n", {"label": "pos"}, "conll:1: no column 'pos'"),
        ("\n\n", {}, "no sentence in this file"),
        ("bar O\nbal O\n", {}, "none of the 1 rows of the train split has an entity"),
        (CONLL, {"labels": ["LOC"]}, "conll:3: the type 'PER' is not one of the task's"),
        (table(["bar", "bal"], ["O"]), {}, "jsonl:1: 2 tokens, but 1 tags"),
        (table([], []), {}, "jsonl:1: the text in column 'tokens' is empty"),
        (table(["bar", " "], ["O", "O"]), {}, "jsonl:1, token 2: the token is empty"),
        (table(["bar", 3], ["O", "O"]), {}, "jsonl:1: the tokens are not a list of texts"),
        (table(["bar"], "O"), {}, "jsonl:1: the tags are not a list"),
        (table(["bar"], [0]), {}, "jsonl:1: the tags are numbers, which the recipe does not name"),
        (table(["bar"], [3]), {"labels": ["O", "B-X", "I-X"]}, "jsonl:1, token 1: there is no tag number 3"),
        (table(["bar"], [True]), {"labels": ["O", "B-X", "I-X"]}, "jsonl:1, token 1: True is not a tag"),
        (table(["bar"], ["\ud800"]), {}, "is not a tag"),
        (text_with([[0, 9, "X"]]), TEXT, r"jsonl:1: entity 1 \(0 to 9\) is not in the text, which has 8 characters"),
        (text_with([[2, 2, "X"]]), TEXT, r"jsonl:1: entity 1 \(2 to 2\) is not in the text"),
        (text_with([[3, 4, "X"]]), TEXT, r"jsonl:1: entity 1 \(3 to 4\) has no visible character"),
        (text_with([[0, 5, "X"], [4, 8, "Y"]]), TEXT, r"jsonl:1: the entities 'bar t' \(X\) and 'told' \(Y\) overlap"),
        (text_with([[0, 3]]), TEXT, "jsonl:1: entity 1 is not a span with a label"),
        (text_with([{"start": 0, "end": 3}]), TEXT, "jsonl:1: entity 1 is not a span with a label"),
        (text_with([[0, 3, ""]]), TEXT, "jsonl:1: entity 1 is not a span with a label"),
        (text_with({"start": 0}), TEXT, "jsonl:1: the entities are not a list"),
        (text_with([], " "), TEXT, "jsonl:1: the text in column 'text' is empty"),
    ],
)
def test_a_row_that_cannot_be_is_refused_with_its_place(text, keys, expected, task):
    with pytest.raises(UserError, match=expected):
        check_rows("toy", task(text, "file.jsonl" if text.startswith("{") else "file.conll", **keys))


def test_a_type_that_one_split_alone_has_is_refused_unless_the_recipe_names_it(task):
    other = CONLL.replace("LOC", "PER")
    with pytest.raises(UserError, match="label 'LOC' occurs in 1 training row but in no evaluation split"):
        check_rows("toy", task(dev=other))
    assert "LOC (1)" in check_rows("toy", task(dev=other, labels=["LOC", "PER"]))
    with pytest.raises(UserError, match=r"dev-file\.conll:9: the type 'LOC' is not one of the task's"):
        check_rows("toy", task(other, dev=CONLL))


def test_rows_without_tokens_may_be_dropped_and_documents_held_out(task):
    text = table([], []) + FORMS["lists"][0]
    assert "1 row with an empty text left out" in check_rows("toy", task(text, "file.jsonl", drop_empty=True))
    documents = "".join(f"-DOCSTART- O\n\nbar B-X\nbal O\n\nbar{n} B-X\n\n" for n in range(20))
    whole = task(documents).model_dump(exclude={"dev", "kind"}) | {"hold_out": {"column": "document"}}
    found = read_task("toy", Task.model_validate({"kind": "token_classification"} | whole))
    assert len(found.dev[""]) % 2 == 0
    assert len(found.dev[""]) + len(found.train) + len(found.tune) == 40


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return load_tokenizer(tiny_bert)


def tagged(data, index, tokenizer):
    """The tokens of a window, each with the name of its tag."""
    item = data.train[index]
    names = [data.labels[tag] if tag != UNTAGGED else "" for tag in item["tags"]]
    return list(zip(tokenizer.convert_ids_to_tokens(item["input_ids"]), names, strict=True))


def test_the_first_piece_of_a_word_has_its_tag_and_special_tokens_and_later_pieces_have_none(task, tokenizer):
    data = load_task("toy", task("barxy B-PER\nbal'xy I-PER\n'told B-LOC\n.x O\n"), tokenizer)
    assert tagged(data, 0, tokenizer) == [
        ("[CLS]", ""),
        *[("bar", "B-PER"), ("##x", ""), ("##y", "")],
        # A word of the data that the tokenizer reads as three words.
        *[("bal", "I-PER"), ("'", "I-PER"), ("x", "I-PER"), ("##y", "")],
        *[("'", "B-LOC"), ("told", "I-LOC")],
        *[(".", "O"), ("x", "O")],
        ("[SEP]", ""),
    ]
    assert data.train.tagged.tolist() == [8]
    assert data.dev_n == 1


def gold(split, classes: int) -> list[np.ndarray]:
    """Logits that are those of the tags, and of tag 1 at all other tokens."""
    return [np.eye(classes)[np.where(np.array(tags) < 0, 1, tags)].T for tags in split.tags]


def test_tags_as_logits_give_back_the_tags(task, tokenizer):
    data = load_task("toy", task(), tokenizer)
    assert data.scores(gold(data.dev, len(data.labels))) == {"f1": 1.0}
    nothing = [np.eye(5)[np.zeros(len(tags), int)].T for tags in data.dev.tags]
    assert data.scores(nothing) == {"f1": 0.0}


def long_text(words: int) -> str:
    rng = random.Random(1)
    tags = [("B-PER", "I-PER"), ("O",), ("B-LOC",)]
    chosen = [tag for _ in range(words) for tag in rng.choice(tags)][:words]
    return "".join(f"{rng.choice(['bar', 'bal', 'zqx'])} NN {tag}\n" for tag in chosen)


@pytest.mark.parametrize("stride", [1, 6, 12])
def test_windows_put_together_are_the_whole_sentence(stride, task, tokenizer):
    cut = load_task("toy", task(long_text(60) + "\n" + CONLL, max_seq_length=20, windows={"stride": stride}), tokenizer)
    whole = load_task("toy", task(long_text(60) + "\n" + CONLL, max_seq_length=128), tokenizer)
    assert len(whole.dev) == len(whole.dev.truth) == len(cut.dev.truth) == 3
    assert len(cut.dev) > 6
    assert cut.dev.lengths.max() == 20
    assert cut.dev.tagged.sum() == whole.dev.tagged.sum()  # each word counts once, whatever the windows have in common
    assert all(np.array_equal(a, b) for a, b in zip(cut.dev.truth, whole.dev.truth, strict=True))
    assert cut.scores(gold(cut.dev, 5)) == {"f1": 1.0}

    rng = np.random.default_rng(0)
    of_sentence = [rng.normal(size=(5, length)) for length in whole.dev.lengths]
    of_window, at = [], dict.fromkeys(range(3), 0)
    for ids, number in zip(cut.dev.inputs["input_ids"], cut.dev.sentence_of.tolist(), strict=True):
        inner = of_sentence[number][:, 1:-1][:, at[number] : at[number] + len(ids) - 2]
        of_window.append(np.pad(inner, ((0, 0), (1, 1))))
        at[number] += len(ids) - 2 - stride
    predictions = zip(cut.dev.predicted(of_window), whole.dev.predicted(of_sentence), strict=True)
    assert all(np.array_equal(a, b) for a, b in predictions)


def test_the_window_that_decides_a_word_is_the_one_with_most_tokens_around_it(task, tokenizer):
    data = load_task("toy", task("bar B-PER\n" * 30, max_seq_length=22, windows={"stride": 10}), tokenizer)
    places = data.dev.places
    assert np.unique(places[:, 0]).tolist() == [0, 1]  # tokens 0 to 19, and 10 to 29
    assert places[:15, 0].tolist() == [0] * 15
    assert places[15:, 0].tolist() == [1] * 15


@pytest.mark.parametrize("words", [5, 18, 19, 40])
def test_estimates_count_the_windows_that_there_are(words, task, tokenizer):
    section = task("bar B-PER\n" * words, max_seq_length=20, windows={"stride": 6})
    found = load_task("toy", section, tokenizer).dev
    assert found.token_counts([words], section) == found.lengths.tolist()


def test_an_entity_may_end_within_a_word_or_a_token(task, tokenizer):
    section = task(text_with([[0, 3, "X"], [9, 15, "X"]], "bar told movingly told"), "file.jsonl", **TEXT)
    data = load_task("toy", section, tokenizer)
    assert tagged(data, 0, tokenizer)[2:] == [
        ("told", "O"),
        ("moving", "B-X"),
        ("##l", "O"),
        ("##y", ""),
        ("told", "O"),
        ("[SEP]", ""),
    ]
    assert data.scores(gold(data.dev, 3)) == {"f1": 1.0}
    # One token for two words: the second is inside of what the first begins.
    one = task(text_with([[0, 4, "X"]], "moving bar"), "file.jsonl", **TEXT)
    shared = load_task("toy", one, tokenizer)
    assert [tag for tag in shared.train[0]["tags"] if tag >= 0] == [1, 0]
    assert [tags.tolist() for tags in shared.dev.predicted(gold(shared.dev, 3))] == [[1, 2, 0]]
    assert shared.scores(gold(shared.dev, 3)) == {"f1": 0.0}  # the model cannot know


def test_words_of_a_text_are_those_of_the_tokenizer_and_ideographs_stand_alone(task):
    section = task(text_with([[4, 6, "X"]], "I'm 東京 IL-2"), "file.jsonl", **TEXT)
    (row,) = read_task("toy", section).train
    words = [row.texts[0][start:end] for start, end in row.label.spans]
    assert words == ["I", "'", "m", "東", "京", "IL", "-", "2"]
    assert list(row.label.tags) == ["O", "O", "O", "B-X", "I-X", "O", "O", "O"]


def test_a_split_is_tokenised_again_by_another_tokenizer(task, tokenizer):
    data = load_task("toy", task(long_text(60), max_seq_length=20), tokenizer).train
    again = data.encoded_by(tokenizer)
    assert again.inputs == data.inputs
    assert again.tags == data.tags
    assert np.array_equal(again.places, data.places)


@pytest.mark.parametrize("length", [24, 128])
def test_characters_of_several_tokens_are_words_as_any_others(length, task, tiny_text):
    """A byte-level tokenizer, as RoBERTa's: an emoji is four tokens with the same offsets."""
    bpe = ByteLevelBPETokenizer()
    bpe.train([str(tiny_text)], vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    learned = json.loads(bpe.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    roberta = RobertaTokenizer(vocab=learned["vocab"], merges=merges, model_max_length=128)
    text = "lovely B-X\n\U0001f600 I-X\nzo\u00eb O\n\u0418\u0432\u0430\u043d B-Y\n, O\n\u6771\u4eac B-X\ntold O\n" * 3
    data = load_task("toy", task(text, max_seq_length=length, windows={"stride": 6}), roberta)
    assert data.dev.tagged.sum() == 21  # the first token of each word
    assert data.dev.places.min() >= 0
    assert data.scores(gold(data.dev, 5)) == {"f1": 1.0}
    first = data.dev.tags[0]
    emoji = [
        i for i, token in enumerate(roberta.convert_ids_to_tokens(data.dev.inputs["input_ids"][0])) if token == "\u00f0"
    ]
    assert [first[i] for i in emoji[:1]] == [2]
    assert first[emoji[0] + 1] == UNTAGGED


@pytest.mark.parametrize("shape", ["texts", "sentences", "packed", "pairs"])
def test_the_texts_of_its_rows_can_be_a_source_of_a_corpus(shape, task, tokenizer, tmp_path):
    text = "\n".join(f"word{n} B-PER\ntold O\n" + "bar O\n" * 20 for n in range(300))
    section = task(text, max_seq_length=20, windows={"stride": 6}, tuning_examples=0)
    corpus = corpus_of({"tasks": ["toy"], "shape": shape, "max_seq_length": 16})
    found = load_corpus(corpus, {"toy": section}, tokenizer, tmp_path).train
    ids = [found.example(index)["input_ids"] for index in range(len(found))]
    assert max(map(len, ids)) <= 16
    words = " ".join(tokenizer.decode(one) for one in ids)
    assert "told bar bar" in words
    assert not {"B", "PER", "per"} & set(words.split())  # texts, no tags


O, B, I, B2, I2 = range(5)  # noqa: E741


@pytest.mark.parametrize(
    ("truth", "predicted", "expected"),
    [
        # The example of seqeval's documentation.
        ([[O, O, O, B, I, I, O], [B2, I2, O]], [[O, O, B, I, I, I, O], [B2, I2, O]], (0.5, 0.5, 0.5)),
        ([[B, I, O]], [[I, I, O]], (1, 1, 1)),  # I begins an entity, too
        ([[B, I, I]], [[B, B, I]], (0, 0, 0)),
        ([[B, I, O]], [[B, I2, O]], (0, 0, 0)),  # another type begins another entity
        ([[B, O, B2]], [[B, O, O]], (2 / 3, 1, 0.5)),
        ([[B, O, O]], [[B, B, B]], (0.5, 1 / 3, 1)),
        ([[B, O]], [[O, O]], (0, 0, 0)),
        ([[O, O]], [[B, O]], (0, 0, 0)),
        ([[B, B2, I2, I, O]], [[B, B2, I2, B, O]], (1, 1, 1)),
        ([[O, B]], [[O, B]], (1, 1, 1)),  # one that ends with the sentence
        ([[B], [B]], [[B], [O]], (2 / 3, 1, 0.5)),  # sentences are not joined
    ],
)
def test_entities_are_counted_as_seqeval_does(truth, predicted, expected):
    arrays = [[np.array(tags) for tags in side] for side in (truth, predicted)]
    found = score("token_classification", ["f1", "precision", "recall"], *arrays, classes=5)
    assert tuple(found.values()) == pytest.approx(expected)


def test_scores_by_type_are_those_of_one_type_alone():
    truth, predicted = [np.array([B, O, B2, I2])], [np.array([B, O, B2, O])]
    found = entities.by_type(truth, predicted, ("PER", "LOC", "ORG"))
    assert found["PER"] == {"f1": 1.0, "precision": 1.0, "recall": 1.0, "entities": 1.0}
    assert found["LOC"] == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "entities": 1.0}
    assert found["ORG"]["entities"] == 0


def test_real_anem_is_read_whole(shared_data, tokenizer):
    folder = shared_data / "anem"
    section = Task(kind="token_classification", train=f"{folder}/train.conll", dev=f"{folder}/test.conll")
    assert check_rows("anem", section) == "2,815 training rows, 1,882 evaluation rows; 1,879 entities of 11 types"
    found = read_task("anem", section)
    assert len(found.labels) == 23
    assert sum(tag.startswith("B-") for row in found.dev[""] for tag in row.label.tags) == 1256
