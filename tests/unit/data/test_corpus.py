"""Pre-training text: nothing lost, nothing in both splits, little memory, BERT's masking."""

import lzma
from contextlib import nullcontext

import numpy as np
import pytest
from transformers import BertTokenizer

from toolkit.core.errors import UserError
from toolkit.data import corpus, masking
from toolkit.data.batches import pad_masked
from toolkit.data.corpus import load_corpus
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.data.tasks import train_texts
from toolkit.models.load import load_tokenizer
from toolkit.pipeline import graph
from toolkit.recipe import Corpus, Recipe, Task
from toolkit.recipe.corpus import Pairs


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return load_tokenizer(tiny_bert)


def words(sequences, tokenizer) -> list[int]:
    """All ids of a split, special tokens left out."""
    return [
        int(i) for s in (sequences[n] for n in range(len(sequences))) for i in s if i not in tokenizer.all_special_ids
    ]


def articles(path) -> list[str]:
    return path.read_text().strip().split("\n\n")


def ids_of(texts, tokenizer) -> list[int]:
    return [i for text in texts for i in tokenizer(text, add_special_tokens=False)["input_ids"]]


def test_packed_sequences_hold_every_word_in_order_and_no_article_in_both_splits(tiny_text, tokenizer, tmp_path):
    data = load_corpus(Corpus(files=(str(tiny_text),), max_seq_length=24), {}, tokenizer, tmp_path)
    found = articles(tiny_text)
    assert words(data.valid, tokenizer) == ids_of(found[::20], tokenizer)
    assert words(data.train, tokenizer) == ids_of([a for i, a in enumerate(found) if i % 20], tokenizer)


def test_packed_sequences_are_full_but_for_the_last_and_framed_by_cls_and_sep(tiny_text, tokenizer, tmp_path):
    train = load_corpus(Corpus(files=(str(tiny_text),), max_seq_length=24), {}, tokenizer, tmp_path).train
    assert set(train.lengths[:-1]) == {24}
    assert [len(train[i]) for i in range(len(train))] == train.lengths.tolist()
    assert {int(train[i][0]) for i in range(len(train))} == {tokenizer.cls_token_id}
    assert {int(train[i][-1]) for i in range(len(train))} == {tokenizer.sep_token_id}
    assert train[0].dtype == np.int64
    assert train[-1].tolist() == train[len(train) - 1].tolist()
    with pytest.raises(IndexError):
        train[len(train)]


def test_documents_in_one_sequence_are_parted_by_sep(tokenizer, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("skipped\n\na b\nc\n\nd\n")
    train = load_corpus(Corpus(files=(str(path),)), {}, tokenizer, tmp_path).train
    assert [tokenizer.decode(train[i]) for i in range(len(train))] == ["[CLS] a b c [SEP] d [SEP]"]


def test_without_packing_each_text_is_a_sequence_cut_to_length(tokenizer, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("v\n\n\n\na b\n" + "c " * 30 + "\n")
    data = load_corpus(Corpus(files=(str(path),), max_seq_length=8, pack=False), {}, tokenizer, tmp_path)
    texts = [tokenizer.decode(data.train[i]) for i in range(len(data.train))]
    assert texts == ["[CLS] a b [SEP]", "[CLS] c c c c c c [SEP]"]


def test_train_texts_of_tasks_come_first_and_dev_texts_never(tiny_text, tiny_task_files, tokenizer, tmp_path):
    task = Task(train=str(tiny_task_files.train), hold_out={"column": "film", "fraction": 0.25})
    section = Corpus(files=(str(tiny_text),), tasks=("toy",), pack=False)
    data = load_corpus(section, {"toy": task}, tokenizer, tmp_path)
    texts = train_texts(task)
    assert len(data.train) + len(data.valid) == len(texts) + 300  # 300 paragraphs
    for split, wanted in ((data.valid, texts[::20]), (data.train, [t for i, t in enumerate(texts) if i % 20])):
        found = [split[i].tolist() for i in range(len(wanted))]
        assert found == tokenizer(wanted)["input_ids"]


def test_limit_stops_reading(tiny_text, tokenizer, tmp_path):
    with lzma.open(tmp_path / "text.xz", "wt") as stream:
        stream.write(tiny_text.read_text() * 20)
    whole = (tmp_path / "text.xz").read_bytes()
    (tmp_path / "cut.xz").write_bytes(whole[: len(whole) - 100])  # reading it to its end would raise
    section = Corpus(files=(str(tmp_path / "cut.xz"),), max_seq_length=24, limit=40)
    data = load_corpus(section, {}, tokenizer, tmp_path)
    assert (len(data.train), len(data.valid)) == (40, 2)


def test_second_call_opens_what_the_first_one_wrote(tiny_text, tokenizer, tmp_path):
    first = load_corpus(Corpus(files=(str(tiny_text),)), {}, tokenizer, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    masked_otherwise = Corpus(files=(str(tiny_text),), mlm_probability=0.3, whole_word_masking=True)
    again = load_corpus(masked_otherwise, {}, tokenizer, tmp_path)
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert np.array_equal(first.train.ids, again.train.ids)
    assert isinstance(again.train.ids, np.memmap)
    assert again.train.ids.dtype == np.uint16
    assert again.summary() == first.summary()
    assert again.summary()["train_tokens"] == int(again.train.lengths.sum())


_COMPRESSION = {"end_step": 1, "pruners": [{"prune_type": "magnitude"}]}
PRUNED_ON_THE_TASK = {"train": {"steps": 3}, "approach": {"weight_compression": _COMPRESSION}}
QUANTIZED_WITHOUT_A_TEACHER = {"quantization": {"train": {"epoch": 1}}}


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"note": "reduced"}, False),
        ({"labels": ["bad", "good"], "metrics": ["f1"], "max_seq_length": 64}, False),
        ({"task_teacher": {"train": {"steps": 1}}, "transfer": {"pruning": PRUNED_ON_THE_TASK}}, False),
        ({"transfer": {"pruning": PRUNED_ON_THE_TASK}, "quantize": QUANTIZED_WITHOUT_A_TEACHER}, False),
        ({"tuning_examples": 0}, True),
        ({"rows": {"label": ["1"]}}, True),
        ({"dev": None, "hold_out": {"column": "film"}}, True),
    ],
)
def test_only_what_changes_a_tasks_texts_makes_the_corpus_anew(
    tiny_task_files, tiny_bert, tokenizer, tmp_path, change, again
):
    def values(**own):
        task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev)} | own
        steps = {"train": {"steps": 1}}
        corpus = {"tasks": ["toy"], "max_seq_length": 16}
        source = {"source": str(tiny_bert)}
        return Recipe.model_validate(
            {"name": "r", "model": source, "tasks": {"toy": task}, "corpus": corpus, "teacher": steps}
        )

    for number, recipe in enumerate((values(), values(**change))):
        load_corpus(recipe.corpus, recipe.tasks, tokenizer, tmp_path)
        assert len(list(tmp_path.glob("corpus-*"))) == 1 + (again and number)
    before, after = (graph.plan(recipe, tmp_path, ResolvedInputs())[0].key for recipe in (values(), values(**change)))
    assert (before != after) == again  # nor is the pre-training done anew


def test_interrupted_tokenising_starts_over(tiny_text, tokenizer, tmp_path):
    load_corpus(Corpus(files=(str(tiny_text),)), {}, tokenizer, tmp_path)
    (folder,) = tmp_path.iterdir()
    folder.rename(folder.with_suffix(".partial"))
    (folder.with_suffix(".partial") / "train.ids").write_bytes(b"half a ")
    data = load_corpus(Corpus(files=(str(tiny_text),)), {}, tokenizer, tmp_path)
    assert int(data.train[0][0]) == tokenizer.cls_token_id
    assert [path.suffix for path in tmp_path.iterdir()] == [""]


def test_file_without_blank_lines_still_gives_both_splits(tokenizer, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a b c\n" * 2500)
    section = Corpus(files=(str(path),), pack=False)
    data = load_corpus(section, {}, tokenizer, tmp_path)
    assert (len(data.train), len(data.valid)) == (2300, 200)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_file_without_text_is_named_wherever_it_stands(tiny_text, tokenizer, tmp_path, text):
    path = tmp_path / "text.txt"
    path.write_text(text)
    for files in ([path], [path, tiny_text], [tiny_text, path]):
        with pytest.raises(UserError, match="no text in this file") as error:
            load_corpus(Corpus(files=tuple(map(str, files))), {}, tokenizer, tmp_path / "cache")
        assert error.value.where == str(path)


@pytest.mark.parametrize("text", ["one document\nof two lines\n"])
def test_too_little_text_is_a_user_error(tokenizer, tmp_path, text):
    path = tmp_path / "text.txt"
    path.write_text(text)
    with pytest.raises(UserError, match="too little text"):
        load_corpus(Corpus(files=(str(path),)), {}, tokenizer, tmp_path)
    assert all(folder.suffix == ".partial" for folder in tmp_path.iterdir() if folder.is_dir())


def test_longer_sequences_than_the_model_has_positions_are_a_user_error(tiny_text, tokenizer, tmp_path):
    with pytest.raises(UserError, match="max_seq_length 129 is more than"):
        load_corpus(Corpus(files=(str(tiny_text),), max_seq_length=129), {}, tokenizer, tmp_path)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_sequences_without_room_for_words_are_refused(length):
    with pytest.raises(ValueError, match=r"max_seq_length\n.*greater than or equal to 8"):
        Corpus(files=("text.txt",), max_seq_length=length)


@pytest.mark.parametrize("pairs", [None, Pairs()])
@pytest.mark.parametrize("split", ["valid", "train"])
def test_text_in_a_script_that_the_vocabulary_does_not_know_is_refused(tokenizer, tmp_path, pairs, split):
    known, unknown = "lovely old story.\na new one.", "天地 玄黄 宇宙 洪荒"
    held_out = [number % 20 == 0 for number in range(60)]
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(unknown if held == (split == "valid") else known for held in held_out))
    with pytest.raises(UserError, match=rf"100% of the tokens of the {split} split are \[UNK\]") as error:
        load_corpus(Corpus(files=(str(path),), pairs=pairs), {}, tokenizer, tmp_path / "cache")
    assert (error.value.where, "a model with a vocabulary for" in error.value.instead) == ("corpus", True)
    assert [found.suffix for found in (tmp_path / "cache").iterdir()] == [".partial"]


@pytest.mark.parametrize(("known", "refused"), [(2, False), (1, False), (0, True)])
def test_text_with_one_known_word_in_ten_is_taken(tokenizer, tmp_path, known, refused):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join([" ".join(["a"] * known + ["天"] * (10 - known))] * 40))
    section = Corpus(files=(str(path),), max_seq_length=16, pack=False)
    with pytest.raises(UserError, match="does not cover this text") if refused else nullcontext():
        load_corpus(section, {}, tokenizer, tmp_path / "cache")


@pytest.mark.parametrize("pairs", [None, Pairs()])
def test_tokens_are_on_disk_while_text_is_still_being_read(tiny_text, tokenizer, tmp_path, monkeypatch, pairs):
    sizes = []

    def endless_text(*_):
        for document in range(20_000):
            if document % 5000 == 0:
                (file,) = tmp_path.glob("*.partial/train.ids")
                sizes.append(file.stat().st_size)
            yield document, document % 20 == 0, "a b c d e f g h"

    monkeypatch.setattr(corpus, "texts_of", endless_text)
    data = load_corpus(Corpus(files=(str(tiny_text),), pairs=pairs), {}, tokenizer, tmp_path)
    for quarter, size in enumerate(sizes):
        assert size >= data.train.ids.nbytes * (quarter / 4 - 0.05)


def test_masking_picks_the_promised_share_and_never_special_tokens(tokenizer):
    rng = np.random.default_rng(0)
    ids = np.array([tokenizer.cls_token_id, *range(100, 150), tokenizer.sep_token_id, *range(150, 200), 3, 3, 3])
    for _ in range(50):
        masked = masking.mask_tokens(ids, rng, tokenizer, 0.15)
        picked = np.flatnonzero(masked["labels"] != -100)
        assert len(picked) == masking.masked_count(len(ids), 0.15) == 15
        assert not set(ids[picked]) & set(tokenizer.all_special_ids)
        assert np.array_equal(masked["labels"][picked], ids[picked])
        others = np.delete(np.arange(len(ids)), picked)
        assert np.array_equal(masked["input_ids"][others], ids[others])


def test_masking_is_80_10_10(tokenizer):
    rng, ids = np.random.default_rng(0), np.arange(100, 220)
    counts = np.zeros(3)
    for _ in range(400):
        masked = masking.mask_tokens(ids, rng, tokenizer, 0.5)
        picked = masked["labels"] != -100
        now, was = masked["input_ids"][picked], ids[picked]
        counts += [(now == tokenizer.mask_token_id).sum(), (now == was).sum(), len(now)]
    mask, same = counts[:2] / counts[2]
    assert mask == pytest.approx(0.8, abs=0.01)
    assert same == pytest.approx(0.1, abs=0.01)


def test_masking_depends_on_the_generator_alone(tokenizer):
    ids = np.arange(100, 150)
    one, same, other = (masking.mask_tokens(ids, np.random.default_rng(s), tokenizer, 0.15) for s in (1, 1, 2))
    assert np.array_equal(one["labels"], same["labels"])
    assert np.array_equal(one["input_ids"], same["input_ids"])
    assert not np.array_equal(one["labels"], other["labels"])


def test_a_short_sequence_has_one_token_masked_and_an_empty_one_none(tokenizer):
    cls, sep, unknown = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id
    rng = np.random.default_rng(0)
    assert masking.mask_tokens(np.array([cls, 120, sep]), rng, tokenizer, 0.15)["labels"].tolist() == [-100, 120, -100]
    assert set(masking.mask_tokens(np.array([cls, unknown, sep]), rng, tokenizer, 0.15)["labels"]) == {-100}


def test_words_are_masked_where_ids_have_gaps():
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "old": 9, "new": 300}
    tokenizer = BertTokenizer(vocab=words)
    masked = masking.mask_tokens(np.array([2, 300, 300, 300, 3]), np.random.default_rng(0), tokenizer, 0.3)
    assert sorted(masked["labels"]) == [-100, -100, -100, -100, 300]


def test_padding_of_masked_sequences_carries_no_loss_and_no_attention():
    items = [{"input_ids": np.array([2, 8, 3]), "labels": np.array([-100, 7, -100])}]
    items.append({"input_ids": np.array([2, 3]), "labels": np.array([-100, -100])})
    batch = pad_masked(items, pad_id=0)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[2, 8, 3], [2, 3, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[-100, 7, -100], [-100, -100, -100]],
    }
    assert {str(value.dtype) for value in batch.values()} == {"torch.int64"}


def pieces_of_words(masked: dict, ids: np.ndarray, tokenizer) -> list[list[bool]]:
    """For each word, whether each of its pieces is to be guessed."""
    words: list[list[bool]] = []
    for token, label in zip(tokenizer.convert_ids_to_tokens(ids), masked["labels"], strict=True):
        if token.startswith("##"):
            words[-1].append(label != -100)
        else:
            words.append([label != -100])
    return words


def test_whole_words_are_hidden_with_all_their_pieces_and_as_many_tokens_as_fit(tokenizer):
    text = "strange " * 6 + "the old " * 12 + "unheard " * 4
    ids = np.array(tokenizer(text)["input_ids"])
    counts = []
    for seed in range(60):
        masked = masking.mask_tokens(ids, np.random.default_rng(seed), tokenizer, 0.2, whole_words=True)
        for word in pieces_of_words(masked, ids, tokenizer):
            assert len(set(word)) == 1
        counts.append(int((masked["labels"] != -100).sum()))
    wanted = masking.masked_count(len(ids), 0.2)
    assert max(counts) <= wanted
    assert np.mean(counts) > wanted - 2
    one_by_one = masking.mask_tokens(ids, np.random.default_rng(0), tokenizer, 0.2)
    assert any(len(set(word)) == 2 for word in pieces_of_words(one_by_one, ids, tokenizer))


def test_a_word_longer_than_the_share_is_hidden_rather_than_nothing(tokenizer):
    ids = np.array(tokenizer("incomprehensibilities")["input_ids"])
    masked = masking.mask_tokens(ids, np.random.default_rng(0), tokenizer, 0.15, whole_words=True)
    assert (masked["labels"] != -100).sum() == len(ids) - 2


def test_vocabulary_without_word_marks_cannot_mask_whole_words(tiny_text, tmp_path, tokenizer, monkeypatch):
    plain = {word: number for word, number in tokenizer.get_vocab().items() if not word.startswith("##")}
    masking._continues.cache_clear()
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda _: plain)
    with pytest.raises(UserError, match="does not mark") as error:
        load_corpus(Corpus(files=(str(tiny_text),), whole_word_masking=True), {}, tokenizer, tmp_path)
    masking._continues.cache_clear()
    assert error.value.where == "corpus.whole_word_masking"


@pytest.mark.parametrize("pairs", [None, Pairs()])
def test_rows_of_a_hub_data_set_are_documents(tokenizer, tmp_path, pairs, monkeypatch):
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    articles = [f"lovely story {n}.\nIt is the old end of it." for n in range(60)]
    folder = tmp_path / "wiki"
    folder.mkdir()
    datasets.Dataset.from_dict({"text": articles}).to_parquet(folder / "train-00000-of-00001.parquet")
    written = tmp_path / "wiki.txt"
    written.write_text("\n\n".join(articles) + "\n")
    spec = f"hub:{folder}::train"
    streamed = load_corpus(Corpus(files=(spec,), pairs=pairs), {}, tokenizer, tmp_path / "a")
    local = load_corpus(Corpus(files=(str(written),), pairs=pairs), {}, tokenizer, tmp_path / "b")
    assert np.array_equal(streamed.train.ids, local.train.ids)
    assert streamed.summary() == local.summary()
    with pytest.raises(UserError, match="no column 'body'"):
        load_corpus(Corpus(files=(spec,), column="body"), {}, tokenizer, tmp_path / "c")
