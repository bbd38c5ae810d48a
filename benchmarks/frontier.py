"""Scores against latency: sparse models, and dense models of fewer layers trained alike, each in 8 bits.

    python benchmarks/frontier.py train DATA OUT [--set student.steps=600 ...] [--points "3 layers" "80 % 4x1" ...]
    python benchmarks/frontier.py measure OUT [--tokens 32 128]
    python benchmarks/frontier.py chart OUT FILE.svg [--column STS-B] [--tokens 32]

`train` makes one run of `frontier.yaml` for each point, one on each core, up to the IRs: a classifier, and an embedding
model made without labels. DATA has the files `wikipedia/train_50mb.txt.xz` and `stsb`. All points share the dense task
teacher and the tokenised text, and spend the same steps. `measure` times the classifiers in one interleaved run on one
thread, and prints a table; the machine should be idle. The reference is the dense model of all layers, quantized after
training: it is not distilled as the points are. `chart` draws what `measure` found.
"""

import argparse
import csv
import json
import lzma
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_RECIPE = Path(__file__).with_name("frontier.yaml")
_TASK, _DENSE = "reviews", "6 layers"
# Column of the table -> task and metric of its scores.
SCORES = {
    "reviews": (_TASK, "accuracy"),
    "STS-B": ("sentences", "spearman_cosine"),
    "cosine": ("sentences", "dense_cosine"),
}
# Not for the embedding model: its student has learnt from its teacher already.
_RECONSTRUCTED = [f"tasks.{_TASK}.transfer={{reconstruction: {{}}}}"]
_SENTENCES = 10_000  # of Wikipedia; as many again come from STS-B's training pairs, without their scores


def sparse(share: float, tile: str, layers: str = "null") -> list[str]:
    """Returns the overrides of a point with zeros; with all layers, the reviews' transfer starts by reconstruction."""
    compression = "student.pruning.approach.weight_compression"
    pattern = [f"{compression}.target_sparsity={share}", f"{compression}.pattern=tile_pattern_{tile}"]
    return [*pattern, *(_RECONSTRUCTED if layers == "null" else [f"student.layers={layers}"])]


def shallow(layers: int) -> list[str]:
    """Returns the overrides of a dense point with fewer layers."""
    return [f"student.layers={layers}", "student.pruning=null"]


def included(name: str) -> list[str]:
    """Returns the overrides of a point that starts from a student of the package, with all layers."""
    return [f"ready.student=included:{name}", *_RECONSTRUCTED]


# Point -> overrides of the recipe. The dense model of all layers is exported by each of them.
POINTS = {
    "80 % 4x1": sparse(0.8, "4x1"),
    "3 layers": shallow(3),
    "70 % 4x1": sparse(0.7, "4x1"),
    "60 % 4x1": sparse(0.6, "4x1"),
    "80 % 1x1": sparse(0.8, "1x1"),
    "4 layers": shallow(4),
    "2 layers": shallow(2),
    "4 layers, 70 % 4x1": sparse(0.7, "4x1", "4"),
    "4 layers, 50 % 4x1": sparse(0.5, "4x1", "4"),
    "3 layers, 50 % 4x1": sparse(0.5, "4x1", "3"),
    "90 % 1x1": sparse(0.9, "1x1"),
    # Students of the package; their budget was that many million tokens.
    "80 % 4x1, 136 M": included("minilm-80-4x1"),
    "80 % 1x1, 71 M": included("minilm-80-1x1"),
    "3 layers, 71 M": ["ready.student=included:minilm-3-layers"],
    "3 layers, 50 % 4x1, 74 M": ["ready.student=included:minilm-3-layers-50-4x1"],
}


def folder_of(out: Path, point: str) -> Path:
    return out / point.replace(" % ", "-").replace(", ", "-").replace(" ", "-")


def train(data: Path, out: Path, points: list[str], overrides: list[str]) -> None:
    """Trains and exports the points, two at a time on one core each; the first one makes what all share."""
    out.mkdir(parents=True, exist_ok=True)
    sentences = write_sentences(data, out / "sentences.txt")
    file = (data / "wikipedia/train_50mb.txt.xz").resolve()
    text = [
        f"corpus.sources=[{{files: [{file}], shape: sentences, max_seq_length: 64}}, "
        f"{{tasks: [{_TASK}, sentences], shape: texts, max_seq_length: 64}}]",
        f"tasks.sentences.train={sentences}",
        f"tasks.sentences.dev={(data / 'stsb/dev.tsv').resolve()}",
    ]
    cores = sorted(os.sched_getaffinity(0))[:2]
    free = list(cores)

    def one(point: str) -> int:
        core = free.pop()
        folder = folder_of(out, point)
        command = [sys.executable, "-m", "toolkit", "run", str(_RECIPE), *text, f"name={folder.name}"]
        command += ["--runs", str(out), *POINTS[point], *overrides]
        with (out / f"{folder.name}.log").open("a") as log:
            code = subprocess.run(
                command, stdout=log, stderr=log, preexec_fn=lambda: os.sched_setaffinity(0, {core})
            ).returncode
        free.append(core)
        finished = code in (0, 4)  # 4: finished, but an accuracy criterion is not met
        print(f"{point}: {'done' if finished else f'exit code {code}, see {folder.name}.log'}", flush=True)
        return 0 if finished else code

    first, *others = points
    if code := one(first):  # it makes what the others share
        raise SystemExit(code)
    for point in others:
        if not folder_of(out, point).exists():
            for shared in (".cache", f"tasks/{_TASK}/task_teacher"):
                shutil.copytree(folder_of(out, first) / shared, folder_of(out, point) / shared)
    with ThreadPoolExecutor(len(cores)) as pool:
        if any([*pool.map(one, others)]):
            raise SystemExit(1)


def write_sentences(data: Path, target: Path) -> Path:
    """Writes the texts that embedding models are distilled on: sentences of Wikipedia and of STS-B's training pairs."""
    found: list[str] = []
    with lzma.open(data / "wikipedia/train_50mb.txt.xz", "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            sentence = line.strip().split(". ")[0]
            if number % 3 == 0 and 30 < len(sentence) < 200:
                found.append(sentence)
            if len(found) == _SENTENCES:
                break
    with (data / "stsb/train.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            found += [row["sentence1"], row["sentence2"]]
    target.write_text("".join(f"{sentence}\n" for sentence in dict.fromkeys(found)), encoding="utf-8")
    return target.resolve()


def exported(out: Path) -> dict[str, tuple[Path, dict[str, float]]]:
    """Returns point -> (IR folder of its fastest kind, column of the table -> score in per cent), where both exist."""
    found: dict[str, tuple[Path, dict[str, float]]] = {}
    budgets: dict[str, int] = {}
    for point in POINTS:
        tasks = folder_of(out, point) / "tasks"
        manifests = {task: tasks / task / "export/manifest.json" for task, _ in SCORES.values()}
        if not all(manifest.is_file() for manifest in manifests.values()):
            continue
        variants = {
            task: json.loads(manifest.read_text())["metrics"]["variants"] for task, manifest in manifests.items()
        }
        student = folder_of(out, point) / "student/manifest.json"
        if student.is_file():
            budgets[point] = json.loads(student.read_text())["metrics"]["steps"]
        own = "sparse-engine-int8" if "layers" not in point or "%" in point else "sparse-int8"
        for name, variant in ((_DENSE, "dense-int8"), (point, own)):
            scores = {column: 100 * variants[task][variant]["ir"][metric] for column, (task, metric) in SCORES.items()}
            found.setdefault(name, (tasks / _TASK / "export" / variant, scores))
    if len(set(budgets.values())) > 1:
        raise SystemExit(f"the points were trained with different numbers of steps: {budgets}")
    return found


def measure(out: Path, tokens: list[int], rounds: int) -> None:
    """Times the IRs and prints the table."""
    from toolkit.measure import latency
    from toolkit.models.load import load_tokenizer
    from toolkit.recipe import Performance

    points = exported(out)
    named = {name: folder for name, (folder, _) in points.items()}
    tokenizer = load_tokenizer(named[_DENSE])
    times: dict[tuple[str, int], float] = {}
    for length in tokens:
        section = Performance(
            batch_sizes=(1,),
            sequence_length=length,
            iteration=rounds,
            seconds=2,
            configs={"cores_per_instance": 1, "num_of_instance": 1},
        )
        full = tokenizer(["a film about a film " * length], truncation=True, max_length=length)
        examples, scratch = [{name: full[name][0] for name in full}], (out / f"latency-{length}").resolve()
        for stats in latency.measure(named, examples, tokenizer.pad_token_id, section, scratch):
            times[stats.model, length] = float(stats.as_metrics()["latency_ms_median"])
    heads = [*SCORES, *(f"{length} tokens, ms | x" for length in tokens)]
    print(f"| model in 8 bits | {' | '.join(heads)} |\n|---|{'---:|' * (len(SCORES) + 2 * len(tokens))}")
    for name in sorted(points, key=lambda n: -times[n, tokens[0]]):
        cells = [f"{score:.1f}" for score in points[name][1].values()]
        cells += [f"{times[name, t]:.2f} | {times[_DENSE, t] / times[name, t]:.2f}" for t in tokens]
        print(f"| {name} | {' | '.join(cells)} |")
    rows = {n: points[n][1] | {f"ms {t}": times[n, t] for t in tokens} for n in points}
    (out / "frontier.json").write_text(json.dumps(rows, indent=1))


# Kind of a point -> colour, shape and name in the chart.
_KINDS = {
    "dense": ("#1d4ed8", "circle", "dense INT8"),
    "blocks": ("#c2610c", "diamond", "4x1, sparse engine"),
    "single": ("#0f766e", "square", "1x1, sparse engine"),
}
_STYLE = """text { fill: #1f2937; } .grid { stroke: #e5e7eb; } .mark { fill: var(--c); stroke: var(--c); }
.curve { fill: none; stroke: var(--c); stroke-dasharray: 4 3; } """


def chart(out: Path, target: Path, column: str, tokens: int) -> None:
    """Draws a score against latency; a dashed line joins the dense models."""
    from toolkit.reporting.svg import Plot, axis, columns

    found = json.loads((out / "frontier.json").read_text())
    places = {name: (row[f"ms {tokens}"], row[column]) for name, row in found.items()}
    text = "; ".join(f"{name}: {score:.1f} at {ms:.2f} ms" for name, (ms, score) in places.items())
    plot = Plot("frontier", f"{column} against latency", text, 330)
    x = axis([ms for ms, _ in places.values()], *columns(), zero=True)
    y = axis([score for _, score in places.values()], 280, 30)
    plot.axes(x, y, f"ms per inference of the classifier: {tokens} tokens, batch 1, one thread", column)
    for number, (kind, (_, shape, meaning)) in enumerate(_KINDS.items()):
        plot.point(kind, shape, 12 + 128 * number, 12)
        plot.label(22 + 128 * number, 16, meaning, small=True)
    plot.line("dense", [(x(ms), y(score)) for name, (ms, score) in sorted(places.items()) if "%" not in name])
    for name, (ms, score) in places.items():
        kind = "dense" if "%" not in name else "blocks" if "4x1" in name else "single"
        plot.point(kind, _KINDS[kind][1], x(ms), y(score))
        left = kind != "dense" or x(ms) > 0.75 * x.end
        plot.label(x(ms) - 9 if left else x(ms) + 9, y(score) + 4, name, "end" if left else "start", small=True)
    style = _STYLE + " ".join(f".c-{kind} {{ --c: {colour}; }}" for kind, (colour, _, _) in _KINDS.items())
    drawn = plot.svg().replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" ', 1)
    background = f'<style>{style}</style><rect width="100%" height="100%" fill="white"/>'
    target.write_text(drawn.replace("<title", f"{background}<title", 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train")
    training.add_argument("data", type=Path)
    training.add_argument("out", type=Path)
    training.add_argument("--points", nargs="+", choices=list(POINTS), default=list(POINTS))
    training.add_argument("--set", nargs="+", default=[], help="overrides of the recipe, for all points")
    training.set_defaults(function=lambda o: train(o.data, o.out, o.points, o.set))
    measuring = commands.add_parser("measure")
    measuring.add_argument("out", type=Path)
    measuring.add_argument("--tokens", nargs="+", type=int, default=[32, 128])
    measuring.add_argument("--rounds", type=int, default=5)
    measuring.set_defaults(function=lambda o: measure(o.out, o.tokens, o.rounds))
    drawing = commands.add_parser("chart")
    drawing.add_argument("out", type=Path)
    drawing.add_argument("target", type=Path, metavar="FILE.svg")
    drawing.add_argument("--column", choices=list(SCORES), default="STS-B")
    drawing.add_argument("--tokens", type=int, default=32)
    drawing.set_defaults(function=lambda o: chart(o.out, o.target, o.column, o.tokens))
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
