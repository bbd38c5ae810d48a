"""What tests share: a tiny BERT, a toy sentiment task and some text, all made here from one small made-up language."""

import csv
import itertools
import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

# Before torch is imported: tiny models are faster on one thread, and no test may reach for the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.modules.setdefault("openvino_telemetry", None)  # as the commands do: it forks a process for each thing it tells

GOOD = ["lovely", "bright", "warm", "clever", "moving", "fresh", "witty", "tender"]
BAD = ["dull", "grim", "cold", "clumsy", "boring", "stale", "silly", "harsh"]
NEUTRAL = ["long", "short", "loud", "quiet", "old", "new", "late", "early"]
FRAMES = (
    "the {noun} of {noun} is {adjective} .",
    "a {adjective} {noun} , {adverb} told by {noun} .",
    "{noun} finds the {noun} {adverb} {adjective} .",
    "it is a {noun} and it feels {adverb} {adjective} !",
    "who calls this {adjective} {noun} a {noun} ?",
)
ADVERBS = ["very", "quite", "rather", "truly", "simply", "always"]
NOUNS = ["".join(syllable) for syllable in itertools.product("bdfgklmnprst", "aeiou", "nrls")]
PUNCTUATION = [".", ",", "!", "?", "'"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests that are marked `gpu` where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("torch finds no CUDA device here")


def sentence(rng: random.Random, adjectives: list[str]) -> str:
    """One sentence of the made-up language; `adjectives` gives it its mood."""
    frame = rng.choice(FRAMES)
    while "{noun}" in frame:
        frame = frame.replace("{noun}", rng.choice(NOUNS), 1)
    return frame.format(adjective=rng.choice(adjectives), adverb=rng.choice(ADVERBS))


def vocabulary() -> list[str]:
    """About 350 WordPiece entries that spell every sentence above, and any other lower-case text letter by letter."""
    words = set(NOUNS) | set(GOOD + BAD + NEUTRAL + ADVERBS + PUNCTUATION)
    words |= {w for frame in FRAMES for w in frame.split() if not w.startswith("{")}
    letters = set("abcdefghijklmnopqrstuvwxyz0123456789")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return special + sorted(words | letters) + sorted(f"##{letter}" for letter in letters)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a BertForMaskedLM with random weights (2 layers, hidden 32) and its tokenizer. Not to be written to."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny_bert")
    words = {word: index for index, word in enumerate(vocabulary())}
    BertTokenizer(vocab=words, model_max_length=128).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_task_files(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`.train` (480 rows) and `.dev` (120 rows): TSV files with columns sentence, label (0 bad, 1 good) and film."""
    folder = tmp_path_factory.mktemp("tiny_task")
    rng = random.Random(0)
    files = {}
    for split, rows in (("train", 480), ("dev", 120)):
        path = folder / f"{split}.tsv"
        with path.open("w", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t", quoting=csv.QUOTE_NONE, lineterminator="\n")
            writer.writerow(["sentence", "label", "film"])
            for row in range(rows):
                writer.writerow([sentence(rng, (BAD, GOOD)[row % 2]), row % 2, rng.choice(NOUNS[:40])])
        files[split] = path
    return SimpleNamespace(**files)


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file: 100 articles of three paragraphs, one paragraph a line, a blank line between articles."""
    rng = random.Random(1)
    paragraphs = [" ".join(sentence(rng, GOOD + BAD + NEUTRAL) for _ in range(4)) for _ in range(300)]
    articles = ["\n".join(paragraphs[i : i + 3]) for i in range(0, len(paragraphs), 3)]
    path = tmp_path_factory.mktemp("tiny_text") / "text.txt"
    path.write_text("\n\n".join(articles) + "\n")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets beside the repository; the test is skipped where there is none."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the public data sets in {folder}, which are not there")
    return folder
