"""`pruneofa compress`: from a model and two data files to checked IRs; the code behind `pruneofa.compress`, too."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toolkit.cli.report import reported
from toolkit.cli.run import Track, execute
from toolkit.cli.terminal import Outcome, with_output

if TYPE_CHECKING:
    from toolkit.pipeline.short_recipe import Compression
    from toolkit.recipe import Recipe


@dataclass(frozen=True)
class Compressed:
    """A finished compression.

    Attributes:
        recipe: The recipe that was run.
        folder: Run folder.
        outcome: What the command prints; its error says why compression failed, or what criterion is not met.
        best: Name of the variant that serves the target best; None if none is accurate enough.
        scores: Scores of that variant on the dev split.
    """

    recipe: "Recipe"
    folder: Path
    outcome: Outcome
    best: str | None
    scores: dict[str, float]

    @property
    def best_folder(self) -> Path | None:
        """IR folder of the best variant."""
        from toolkit.pipeline.short_recipe import TASK

        return self.folder / "tasks" / TASK / "export" / self.best if self.best else None


def compressed(order: "Compression", track: str | None = None) -> Compressed:
    """Runs a compression, or what is missing of it, and writes the report.

    Args:
        order: What is compressed.
        track: Tool that records training curves, too; None: none.

    Raises:
        UserError: An argument or a row of the data is invalid; every finished stage is kept.
        CheckFailed: A check of a stage failed.
    """
    from toolkit.pipeline.short_recipe import TASK
    from toolkit.reporting.best import best_variant

    recipe = order.recipe()
    folder = order.runs / recipe.name
    manifests = execute(recipe, folder, track=track)
    best = best_variant(manifests, TASK, order.target)
    scores = {score.metric: score.value for score in best.scores} if best else {}
    outcome = reported(manifests, folder, latency_counts=order.target == "latency")
    return Compressed(recipe, folder, outcome, best.name if best else None, scores)


@with_output
def compress(
    model: Annotated[str, typer.Argument(help="dense model: folder, Hugging Face id or package:<distribution>")],
    train: Annotated[str, typer.Option(help="training split: table, or pattern of tables; hub:<dataset>:<config>:…")],
    dev: Annotated[str, typer.Option(help="evaluation split")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="changes to the recipe, e.g. transfer.epoch=5", show_default=False)
    ] = None,
    task: Annotated[str, typer.Option(help="kind of the task, as `kind` of a recipe")] = "classification",
    target: Annotated[str, typer.Option(help="what counts: latency, size or accuracy")] = "latency",
    sparsity: Annotated[
        float | None, typer.Option(help="fraction of zeros in the encoder's matrices", show_default="by target and CPU")
    ] = None,
    pattern: Annotated[str, typer.Option(help="1x1 or 4x1; auto: the one that is best for target and CPU")] = "auto",
    column: Annotated[
        list[str] | None, typer.Option(help="text column; twice for a pair; default: found from the header")
    ] = None,
    label: Annotated[str | None, typer.Option(help="label column; default: found from the header")] = None,
    name: Annotated[str | None, typer.Option(help="run name; default: the model's")] = None,
    track: Track = None,
    runs: Annotated[Path, typer.Option(help="directory that holds the run folders")] = Path("runs"),
) -> Outcome:
    """Compress a model for a task: fine-tune, prune, quantize, export and measure, with a recipe of its own."""
    from rich.text import Text

    from toolkit.pipeline.short_recipe import Compression

    columns, changes = tuple(column or ()), tuple(overrides or ())
    order = Compression(model, train, dev, task, target, sparsity, pattern, columns, label, name, runs, changes)
    found = compressed(order, track)
    best: dict[str, Any] | None = None
    line = "No variant is accurate enough." if found.outcome.document["variants"] else "No variant was measured."
    if found.best:
        best = {"name": found.best, "folder": found.best_folder, "scores": found.scores}
        line = f"Best for {target}: {found.best}: {found.best_folder}"
    document = found.outcome.document | {"best": best, "recipe": found.folder / "recipe.yaml"}
    return Outcome(document, Text(line), wrap=False, error=found.outcome.error)
