"""Splits of the hub, by means of a local folder laid out like a data set there: no network."""

import gzip

import pytest

from toolkit.core.errors import UserError
from toolkit.data.files import cached_file, fetch_file
from toolkit.data.hub import HubSplit, hub_split
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.data.tables import read_rows
from toolkit.data.tasks import load_task
from toolkit.models.load import load_tokenizer
from toolkit.models.sources import cached_model
from toolkit.pipeline.cache_keys import data_hashes
from toolkit.recipe import Corpus, Task
from toolkit.recipe.references import with_local_folder


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A data set with one config `small`; splits train and validation, labels as class numbers."""
    import datasets

    folder = tmp_path / "toy"
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    for split, rows in (("train", 20), ("validation", 6)):
        texts = [f"{split} {n}" for n in range(rows)]
        table = datasets.Dataset.from_dict({"sentence": texts, "label": [n % 2 for n in range(rows)]}, features)
        (folder / "small").mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / "small" / f"{split}-00000-of-00001.parquet")
    files = "".join(f"  - split: {s}\n    path: small/{s}-*\n" for s in ("train", "validation"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: small\n  data_files:\n{files}---\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    return folder


def test_split_is_fetched_once_into_one_table(dataset, tmp_path):
    spec = f"hub:{dataset}:small:validation"
    assert cached_file(spec) is None
    file = fetch_file(spec)
    assert cached_file(spec) == file
    assert file.is_relative_to(tmp_path / "cache")
    assert [row["label"] for _, row in read_rows(file)] == [0, 1, 0, 1, 0, 1]
    before = file.stat().st_mtime_ns
    assert fetch_file(spec).stat().st_mtime_ns == before
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_a_folder_is_never_kept_under_a_revision_of_the_hub(dataset, monkeypatch):
    monkeypatch.chdir(dataset.parent)
    with pytest.raises(UserError, match="a local folder has the name of this data set") as caught:
        fetch_file("hub:toy@0123abc:small:validation")
    assert caught.value.where == "hub:toy@0123abc:small:validation"
    assert not hub_split("hub:toy@0123abc:small:validation").file.exists()


@pytest.mark.parametrize(("one", "other"), [("[:8]", "[8:]"), ("[:40%]", "[40%:]")])
def test_slices_of_a_split_are_kept_apart(dataset, one, other):
    first, second = (
        [row["sentence"] for _, row in read_rows(fetch_file(f"hub:{dataset}:small:train{part}"))]
        for part in (one, other)
    )
    assert first + second == [f"train {n}" for n in range(20)]
    assert len(first) == 8


def test_names_that_differ_in_signs_alone_have_files_of_their_own():
    splits = [HubSplit("a/b", "", "train"), HubSplit("a_b", "", "train"), HubSplit("a/b", "", "train_")]
    assert len({split.file for split in splits}) == 3


def test_task_from_the_hub_has_the_recipes_class_names(dataset, tiny_bert):
    section = Task(train=f"hub:{dataset}:small:train", dev=f"hub:{dataset}:small:validation", labels=("bad", "good"))
    task = load_task("toy", section, load_tokenizer(tiny_bert))
    assert (len(task.train), len(task.tune), task.dev_n, task.labels) == (18, 2, 6, ("bad", "good"))
    assert task.dev.labels.tolist() == [0, 1, 0, 1, 0, 1]


def folder_with(path, *texts) -> None:
    """A folder laid out like a data set with one split, train."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "train.csv").write_text("text\n" + "".join(f"{text}\n" for text in texts))


def rows_of(spec: str) -> list[str]:
    return [row["text"] for _, row in read_rows(fetch_file(spec))]


def test_folder_of_one_name_in_another_place_has_its_own_rows(dataset, tmp_path, monkeypatch):
    for place in ("here", "there"):
        folder_with(tmp_path / place / "data", place)
        monkeypatch.chdir(tmp_path / place)
        assert rows_of("hub:data::train") == [place]


def test_folder_below_one_with_the_signs_of_a_spec_in_its_name_is_found(dataset, tmp_path):
    place = tmp_path / "a@b" / "c:d"
    folder_with(place / "data", "here")
    spec = with_local_folder("hub:data::train", place)
    assert spec == f"hub:{place}/data::train"
    assert rows_of(spec) == ["here"]


def test_what_is_no_folder_beside_the_recipe_stays_on_the_hub(tmp_path):
    (tmp_path / "squad").write_text("a file of that name")
    folder_with(tmp_path / "glue", "here")
    for spec in ("hub:squad::train", "hub:glue@1a::train", "hub:nothing::train", "hub:glue"):
        assert with_local_folder(spec, tmp_path) == spec
    assert hub_split(f"hub:{tmp_path.name}@1a::train").folder is None


def test_folder_whose_files_were_edited_is_read_anew(dataset, tmp_path):
    spec = f"hub:{tmp_path}/data::train"
    folder_with(tmp_path / "data", "old")
    assert rows_of(spec) == ["old"]
    folder_with(tmp_path / "data", "new")
    assert cached_file(spec) is None
    assert rows_of(spec) == ["new"]


def test_streamed_folder_is_known_by_its_content_and_the_hub_by_its_name(tmp_path):
    section = Corpus(files=(f"hub:{tmp_path}/data::train",))
    found = []
    for place, text in ((tmp_path / "data", "old"), (tmp_path / "copy", "old"), (tmp_path / "data", "new")):
        folder_with(place, text)
        found.append(HubSplit(str(place), "", "train").content)
    assert found[0] == found[1] != found[2]
    assert data_hashes({"corpus": section, "corpus_tasks": {}}, ResolvedInputs(fetch=True))[1] == {"corpus": [found[2]]}
    assert HubSplit("a/b", "c", "train", "1a").content == "hub:a/b@1a:c:train"


@pytest.mark.parametrize("name", ["/nowhere/data", "./data", "../data", "~/no-such-data"])
def test_folder_that_is_not_there_is_refused_before_anything_is_fetched(name):
    with pytest.raises(UserError, match="no such folder") as error:
        cached_file(f"hub:{name}::train")
    assert error.value.where == f"hub:{name}::train"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet"])
def test_folder_with_an_empty_file_is_told_which(dataset, tmp_path, name, streaming):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / ".gitkeep").touch()
    (folder / name).touch()
    with pytest.raises(UserError, match="the file is empty") as error:
        HubSplit(str(folder), "", "train").load(streaming=streaming)
    assert error.value.where == str(folder / name)


def test_folder_with_a_compressed_file_of_nothing_is_told_so(dataset, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match="a file of the data set is empty") as error:
        fetch_file(f"hub:{tmp_path}/data::train")
    assert error.value.where == f"hub:{tmp_path}/data::train"


def test_texts_are_streamed(dataset):
    texts = hub_split(f"hub:{dataset}:small:train").texts("sentence")
    assert [next(texts) for _ in range(2)] == ["train 0", "train 1"]
    with pytest.raises(UserError, match="no column 'text'"):
        next(hub_split(f"hub:{dataset}:small:train").texts("text"))


def test_column_without_texts_is_refused_with_those_that_have_them(dataset):
    with pytest.raises(UserError, match="column 'label' does not contain text") as error:
        next(hub_split(f"hub:{dataset}:small:train").texts("label"))
    assert error.value.where == f"hub:{dataset}:small:train, document 1"
    assert error.value.instead == "corpus.column: sentence"


def test_stream_that_breaks_off_is_a_user_error_that_names_the_document(monkeypatch):
    def dropped():
        yield from ({"text": "one"}, {"text": None})
        raise ConnectionResetError("the peer is gone\nand more")

    monkeypatch.setattr(HubSplit, "load", lambda self, streaming: dropped())
    texts = HubSplit("a/b", "c", "train").texts("text")
    assert [next(texts), next(texts)] == ["one", ""]
    with pytest.raises(UserError, match=r"was interrupted \(ConnectionResetError: the peer is gone\)") as error:
        next(texts)
    assert error.value.where == "hub:a/b:c:train, document 3"
    assert "from the start" in error.value.instead


def test_errors_of_whoever_reads_the_stream_are_left_alone(monkeypatch):
    monkeypatch.setattr(HubSplit, "load", lambda self, streaming: iter([{"text": "one"}, {"text": "two"}]))
    texts = HubSplit("a/b", "c", "train").texts("text")
    next(texts)
    with pytest.raises(ZeroDivisionError):
        texts.throw(ZeroDivisionError)


def test_stream_without_rows_is_refused(monkeypatch):
    monkeypatch.setattr(HubSplit, "load", lambda self, streaming: iter([]))
    with pytest.raises(UserError, match="the split is empty"):
        next(HubSplit("a/b", "c", "train").texts("text"))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("hub:nyu-mll/glue:sst2:train", HubSplit("nyu-mll/glue", "sst2", "train")),
        ("hub:rajpurkar/squad::validation", HubSplit("rajpurkar/squad", "", "validation")),
        ("hub:a/b@1a2b3c:c:train[:10]", HubSplit("a/b", "c", "train[:10]", "1a2b3c")),
        ("hub:a/b@refs/pr/1::train[:10%]+test[90%:]", HubSplit("a/b", "", "train[:10%]+test[90%:]", "refs/pr/1")),
        ("hub:/home/a@b.c/d:e/f::train[5:]", HubSplit("/home/a@b.c/d:e/f", "", "train[5:]")),
        ("hub:~/a@b:c:train", HubSplit("~/a@b", "c", "train")),
    ],
)
def test_split_is_named_by_dataset_config_and_split(spec, expected):
    assert hub_split(spec) == expected


@pytest.mark.parametrize("spec", ["hub:", "hub:a/b", "hub:a/b:c", "hub:a/b:c:", "hub::c:train"])
def test_name_of_another_form_is_refused(spec):
    with pytest.raises(UserError, match="not a split") as error:
        hub_split(spec)
    assert "hub:nyu-mll/glue:sst2:train" in error.value.instead


def test_hub_that_does_not_answer_is_a_user_error_that_names_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    with pytest.raises(UserError, match="cannot load this split") as error:
        fetch_file("hub:no-such/data-set:x:train")
    assert "local file" in error.value.instead


def test_model_on_the_hub_is_not_at_hand_and_a_missing_folder_is_an_error(tmp_path, monkeypatch):
    assert cached_model("google-bert/bert-base-uncased-that-nobody-fetched") is None
    assert cached_model("bert-base-uncased") is None  # an old id without an owner
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for missing in ("models/mine", str(tmp_path / "nowhere"), "nowhere"):
        with pytest.raises(UserError, match="neither a local folder nor a model"):
            cached_model(missing)
