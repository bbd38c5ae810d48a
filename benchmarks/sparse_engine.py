"""Speed, size and memory of the sparse kernel's IRs against OpenVINO's own, PyTorch and ONNX Runtime, in one run.

    python benchmarks/sparse_engine.py --model bert-base --sparsity 0.9 --batch 1 --length 128 --threads 1

Random weights: this is about speed, never about accuracy. Every variant runs in a process of its own, and they take
turns, one inference each, so that a drift of the machine meets all alike. Ratios are to OpenVINO FP32 dense.
With `onnx` and `onnxruntime` installed, ONNX Runtime takes part too. So does DeepSparse, whose licence is for
evaluation only and whose packages want an environment of their own, with `--deepsparse` and that one's interpreter.
`--kernels` times single products instead, on one thread, against PyTorch's dense and CSR products.
`--isa avx2` holds the kernel and oneDNN to AVX2, `avxvnni` to AVX2 with VNNI; OpenVINO's FP32 products on MLAS choose
for themselves.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import util
from pathlib import Path
from typing import Any

SHAPES = {"bert-base": (12, 768, 3072, 12, 30522), "minilm": (6, 384, 1536, 12, 30522)}
ENCODER = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
ENCODER += ("intermediate.dense", "output.dense")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="bert-base")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9])
    parser.add_argument("--pattern", choices=("1x1", "4x1"), nargs="+", default=["1x1"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--length", type=int, nargs="+", default=[128])
    parser.add_argument("--shortest", type=int, help="tokens of the shortest text of a batch; default: all alike")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--isa", choices=("scalar", "avx2", "avxvnni", "avx512", "vnni"))
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32", help="OpenVINO's, of what is not INT8")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--folder", type=Path, help="where models are made and kept; default: a temporary one")
    parser.add_argument("--only", nargs="+", help="variants whose names contain one of these words")
    parser.add_argument("--deepsparse", metavar="PYTHON", help="an interpreter that can import deepsparse")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.isa:
        held = {"scalar": "AVX2", "avx2": "AVX2", "avxvnni": "AVX2_VNNI"}.get(given.isa)
        os.environ |= {"PRUNEOFA_ISA": given.isa} | ({"ONEDNN_MAX_CPU_ISA": held, "NM_ARCH": "avx2"} if held else {})
    if given.worker:
        worker(json.loads(given.worker))
    elif given.kernels:
        kernels_table(given)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            tables(given, given.folder or Path(scratch))


def tables(given: argparse.Namespace, folder: Path) -> None:
    variants = make_variants(given, folder)
    print(f"{given.model}, {given.rounds} rounds, OpenVINO in {given.precision}, {machine()}\n")
    for threads in given.threads:
        for batch in given.batch:
            for length in given.length:
                spread = f"{given.shortest} to " if given.shortest else ""
                print(f"batch {batch}, {spread}{length} tokens, {threads} thread(s)\n")
                print("| variant | median ms | p10 ms | x | x p10 | weights MB | load s | peak MB |")
                print("|---|---:|---:|---:|---:|---:|---:|---:|")
                for row in compare(variants, threads, batch, length, given.rounds):
                    print(row, flush=True)
                print()


def machine() -> str:
    from toolkit.core import machine
    from toolkit.ir import kernels

    found = machine.describe()
    return f"{found['cpu']} ({', '.join(found['isa'])}), {found['cores']} cores; kernel: {kernels.isa()}"


# ---- models


def make_variants(given: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> what a worker needs to run it."""
    from toolkit.ir import kernels
    from toolkit.ir.sparse_engine import to_sparse_engine

    kernels.build()
    made: dict[str, dict[str, Any]] = {}

    def wanted(name: str) -> bool:
        return not given.only or name == "OpenVINO FP32 dense" or any(word in name for word in given.only)

    def add(name: str, kind: str, path: Path, weights: Path) -> None:
        if wanted(name):
            made[name] = {"kind": kind, "path": str(path), "weights": weights.stat().st_size}
            made[name] |= {"precision": given.precision, "shortest": given.shortest}

    def ir(name: str, path: Path) -> None:
        add(name, "openvino", path, path / "openvino_model.bin")

    plain = folder / given.model
    export(given.model, None, "1x1", plain / "dense")
    ir("OpenVINO FP32 dense", plain / "dense")
    ir("OpenVINO INT8 dense", quantized(plain / "dense"))
    add("PyTorch FP32 dense", "torch", plain / "dense", plain / "dense" / "openvino_model.bin")
    for sparsity in given.sparsity:
        for pattern in given.pattern:
            label = f"{sparsity:.0%} {pattern}"
            sparse = plain / f"{sparsity}-{pattern}"
            export(given.model, sparsity, pattern, sparse)
            ir(f"OpenVINO FP32 {label}", sparse)
            ir(f"OpenVINO INT8 {label}", quantized(sparse))
            for precision, source in (("FP32", sparse), ("INT8", quantized(sparse))):
                for name, whole_layers in (("encoder", True), ("matrices", False)):
                    target = sparse / f"{name}-{precision}"
                    if not wanted(f"sparse {name} {precision} {label}"):
                        continue
                    if not target.is_dir():
                        to_sparse_engine(source, target, whole_layers=whole_layers)
                    ir(f"sparse {name} {precision} {label}", target)
            if util.find_spec("onnxruntime") and (sparse / "model.onnx").is_file():
                add(f"ONNX Runtime FP32 {label}", "onnx", sparse / "model.onnx", sparse / "model.onnx")
                dynamic = onnx_dynamic(sparse)
                add(f"ONNX Runtime dynamic INT8 {label}", "onnx", dynamic, dynamic)
            if given.deepsparse and (sparse / "model.onnx").is_file():
                add(f"DeepSparse FP32 {label}", "deepsparse", sparse / "model.onnx", sparse / "model.onnx")
                made.get(f"DeepSparse FP32 {label}", {})["python"] = given.deepsparse
    return made


def export(shape: str, sparsity: float | None, pattern: str, folder: Path) -> None:
    """A classifier with random weights, pruned by magnitude in each encoder matrix, as IR, ONNX and checkpoint."""
    if (folder / "openvino_model.xml").is_file():
        return
    import openvino as ov
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from toolkit.ir.convert import traceable_masks

    layers, hidden, inner, heads, words = SHAPES[shape]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=words,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        attn_implementation="sdpa",
    )
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.02)  # converters drop biases that are zero
            if sparsity and name.endswith(tuple(f"{e}.weight" for e in ENCODER)):
                rows = int(pattern[0])
                blocks = parameter.abs().reshape(-1, rows, parameter.shape[1]).mean(1)
                limit = blocks.flatten().kthvalue(int(sparsity * blocks.numel())).values
                parameter *= (blocks > limit).repeat_interleave(rows, 0)
    ids = torch.ones(2, 16, dtype=torch.long)
    sample = {"input_ids": ids, "attention_mask": ids, "token_type_ids": torch.zeros_like(ids)}
    folder.mkdir(parents=True, exist_ok=True)
    with traceable_masks(), torch.no_grad():
        converted = ov.convert_model(model, example_input=sample)
        if util.find_spec("onnx"):
            axes = {name: {0: "batch", 1: "length"} for name in sample}
            torch.onnx.export(
                *(model, tuple(sample.values()), folder / "model.onnx"),
                **{"input_names": list(sample), "dynamic_axes": axes, "opset_version": 17, "dynamo": False},
            )
    converted.reshape({port: ov.PartialShape([-1, -1]) for port in converted.inputs})
    ov.save_model(converted, folder / "openvino_model.xml", compress_to_fp16=False)
    model.save_pretrained(folder)


def quantized(folder: Path) -> Path:
    """INT8 of an IR, by NNCF, calibrated on random ids; without SmoothQuant, as training for 8 bits leaves it."""
    import nncf
    import numpy as np
    import openvino as ov

    target = folder / "int8"
    if not (target / "openvino_model.xml").is_file():
        rng = np.random.default_rng(0)
        batches = []
        for _ in range(8):
            ids = rng.integers(1000, 20000, (2, 64))
            batches.append(
                {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            )
        model = ov.Core().read_model(folder / "openvino_model.xml")
        plain = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
        result = nncf.quantize(
            *(model, nncf.Dataset(batches)),
            **{"model_type": nncf.ModelType.TRANSFORMER, "subset_size": 8},
            advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=plain),
        )
        target.mkdir()
        ov.save_model(result, target / "openvino_model.xml")
    return target


def onnx_dynamic(folder: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = folder / "model-int8.onnx"
    if not target.is_file():
        quantize_dynamic(folder / "model.onnx", target, weight_type=QuantType.QInt8)
    return target


# ---- timing


def compare(variants: dict[str, dict[str, Any]], threads: int, batch: int, length: int, rounds: int) -> list[str]:
    """Markdown rows; one process for each variant, one inference of each in turn."""
    workers: dict[str, subprocess.Popen[str]] = {}
    loads, times = {}, {name: [] for name in variants}
    settings = os.environ | {"CI": "true", "OMP_NUM_THREADS": str(threads), "NM_DISABLE_ANALYTICS": "1"}
    elsewhere = {key: value for key, value in settings.items() if key != "PYTHONPATH"}
    for name, variant in variants.items():
        what = json.dumps(variant | {"threads": threads, "batch": batch, "length": length})
        workers[name] = subprocess.Popen(
            [variant.get("python", sys.executable), __file__, "--worker", what],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
            env=elsewhere if "python" in variant else settings,
        )
        loads[name] = float(workers[name].stdout.readline())
    for _ in range(rounds):
        for name, process in workers.items():
            times[name].append(ask(process, "run"))
    peaks = {name: ask(process, "stop") for name, process in workers.items()}
    base = times["OpenVINO FP32 dense"]
    rows = []
    for name, values in times.items():
        ratios = statistics.median(base) / statistics.median(values), tenth(base) / tenth(values)
        rows.append(
            f"| {name} | {statistics.median(values):.1f} | {tenth(values):.1f} | {ratios[0]:.2f} | {ratios[1]:.2f} | "
            f"{variants[name]['weights'] / 1e6:.1f} | {loads[name]:.2f} | {peaks[name] / 1e6:.0f} |"
        )
    return rows


def tenth(values: list[float]) -> float:
    return statistics.quantiles(values, n=10)[0]


def ask(process: "subprocess.Popen[str]", word: str) -> float:
    process.stdin.write(f"{word}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def worker(what: dict[str, Any]) -> None:
    """Loads a variant and says how long that took; then times an inference for each line, until `stop`."""
    import numpy as np

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    ids = np.random.default_rng(0).integers(1000, 20000, (what["batch"], what["length"]))
    lengths = np.linspace(what["shortest"] or what["length"], what["length"], what["batch"]).round()
    mask = (np.arange(what["length"]) < lengths[:, None]).astype(ids.dtype)
    inputs = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    start = time.perf_counter()
    infer = {"openvino": openvino_model, "torch": torch_model, "onnx": onnx_model, "deepsparse": deepsparse_model}[
        what["kind"]
    ](what, inputs)
    infer()
    print(time.perf_counter() - start, file=answers, flush=True)
    infer()
    for line in sys.stdin:
        if line.strip() == "stop":
            print(peak_memory(), file=answers, flush=True)
            return
        start = time.perf_counter()
        infer()
        print(1000 * (time.perf_counter() - start), file=answers, flush=True)


def peak_memory() -> int:
    """Bytes; of this process alone: rusage would hand down what its parent once had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def openvino_model(what: dict[str, Any], inputs: dict[str, Any]) -> Any:
    import openvino as ov

    from toolkit.ir.runtime import core, read_ir
    from toolkit.measure.accuracy import input_names

    model = read_ir(Path(what["path"]))
    model.reshape({port: ov.PartialShape(inputs["input_ids"].shape) for port in model.inputs})
    settings = {"INFERENCE_PRECISION_HINT": what["precision"], "INFERENCE_NUM_THREADS": str(what["threads"])}
    settings["NUM_STREAMS"] = "1"
    compiled = core().compile_model(model, "CPU", settings)
    del model
    request = compiled.create_infer_request()
    feed = {name: inputs[name] for name in input_names(compiled, Path(what["path"]))}
    return lambda: request.infer(feed)


def torch_model(what: dict[str, Any], inputs: dict[str, Any]) -> Any:
    import torch
    from transformers import BertForSequenceClassification

    torch.set_num_threads(what["threads"])
    model = BertForSequenceClassification.from_pretrained(what["path"]).eval()
    feed = {name: torch.from_numpy(value) for name, value in inputs.items()}

    def infer() -> None:
        with torch.inference_mode():
            model(**feed)

    return infer


def onnx_model(what: dict[str, Any], inputs: dict[str, Any]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = what["threads"]
    session = onnxruntime.InferenceSession(what["path"], options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def deepsparse_model(what: dict[str, Any], inputs: dict[str, Any]) -> Any:
    import deepsparse

    engine = deepsparse.Engine(
        what["path"],
        batch_size=what["batch"],
        num_cores=what["threads"],
        input_shapes=[list(v.shape) for v in inputs.values()],
    )
    return lambda: engine.run(list(inputs.values()))


# ---- single products


def kernels_table(given: argparse.Namespace) -> None:
    import numpy as np
    import torch

    from toolkit.ir import kernels

    torch.set_num_threads(1)
    print(f"One thread, {given.rounds} rounds, medians in ms (x against PyTorch dense); {machine()}\n")
    print("| rows x columns | tokens | zeros | PyTorch dense | PyTorch CSR | kernel INT8 | FP32 | INT8, 4x1 |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    rng = np.random.default_rng(0)
    for rows, columns in ((768, 768), (3072, 768), (768, 3072), (384, 384), (1536, 384)):
        for tokens in given.length:
            for sparsity in given.sparsity:
                x = rng.normal(size=(tokens, columns)).astype(np.float32)
                codes = rng.integers(1, 127, (rows, columns), dtype=np.int8) * (rng.random((rows, columns)) >= sparsity)
                blocks = rng.integers(1, 127, (rows, columns), dtype=np.int8)
                blocks *= (rng.random((rows // 4, columns)) >= sparsity).repeat(4, 0)
                dense = torch.from_numpy(codes.astype(np.float32))
                csr, column_tokens, row_tokens = (
                    dense.to_sparse_csr(),
                    torch.from_numpy(x.T.copy()),
                    torch.from_numpy(x),
                )
                packed = [
                    kernels.pack(codes),
                    kernels.pack(codes.astype(np.float32)),
                    kernels.pack(blocks, pattern="4x1"),
                ]
                layers = [kernels.Layer([p], isa=given.isa) for p in packed]
                calls = [lambda: row_tokens @ dense.T, lambda: csr @ column_tokens]  # noqa: B023 - called in this round
                calls += [lambda layer=layer: layer(x) for layer in layers]  # noqa: B023
                medians = interleaved(calls, given.rounds)
                shown = " | ".join(f"{m:.2f} ({medians[0] / m:.1f})" for m in medians)
                print(f"| {rows} x {columns} | {tokens} | {sparsity:.0%} | {shown} |", flush=True)


def interleaved(calls: list[Any], rounds: int) -> list[float]:
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 2):
        for call, mine in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if number >= 2:
                mine.append(1000 * (time.perf_counter() - start))
    return [statistics.median(mine) for mine in times]


if __name__ == "__main__":
    main()
