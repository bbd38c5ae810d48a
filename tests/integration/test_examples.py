"""The examples of `examples/` on a tiny IR of the sparse engine: service, C++ program, model server, two processes."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import openvino.utils
import pytest
from fastapi.testclient import TestClient

import pruneofa
from tests.helpers.examples import EXAMPLES, service_modules
from tests.helpers.quantization import Case
from toolkit.core import paths
from toolkit.ir import kernels
from toolkit.ir.runtime import MODEL, core
from toolkit.ir.sparse_engine import to_sparse_engine

TEXTS = ["the bad of dul is very warm .", "a grim lon , quite told by sen .", "it is a tar and it feels truly dull !"]
IDS = [2, 17, 99, 40, 8, 3]


@pytest.fixture(scope="module")
def ir(tiny_bert, tiny_task_files, tmp_path_factory):
    """Folder of a classifier's IR that needs the sparse kernels."""
    kernels.build()
    folder = tmp_path_factory.mktemp("examples")
    case = Case(tiny_bert, tiny_task_files)
    case.model.config.architectures = [type(case.model).__name__]
    case.export(case.model, folder / "plain")
    to_sparse_engine(folder / "plain", folder / "engine")
    return folder / "engine"


@pytest.fixture(scope="module")
def logits(ir):
    """Logits of the token ids, by the Python interface."""
    ids = np.array([IDS])
    return np.asarray(
        pruneofa.load(ir)(input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids)).logits
    )[0]


# --- the service ---


def classes(modules, folder):
    """What the service's function gives for all texts, as one batch."""
    predictor = modules["predictor"]
    return predictor.predictor(folder).run([predictor.Text(text) for text in TEXTS])


def test_the_service_gives_each_text_the_probabilities_of_the_classes(ir):
    from transformers import AutoTokenizer

    with service_modules() as modules:
        found = classes(modules, ir)
    assert [list(row) for row in found] == [["0", "1"]] * 3
    model, tokenizer = pruneofa.load(ir), AutoTokenizer.from_pretrained(ir)
    for text, row in zip(TEXTS, found, strict=True):
        expected = model(**tokenizer(text, return_tensors="pt")).logits.double().softmax(-1)[0].tolist()
        assert list(row.values()) == pytest.approx(expected, abs=1e-4)
    assert len({row["0"] for row in found}) == 3


def test_classes_that_exclude_each_other_not_have_probabilities_of_their_own(ir, tmp_path):
    folder = shutil.copytree(ir, tmp_path / "many")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    with service_modules() as modules:
        one, many = (classes(modules, f)[0] for f in (ir, folder))
    odds = {name: value / (1 - value) for name, value in many.items()}
    assert odds["0"] / odds["1"] == pytest.approx(one["0"] / one["1"], rel=1e-4)
    assert sum(many.values()) != pytest.approx(1)


def test_a_task_of_another_kind_is_refused(ir, tmp_path):
    folder = shutil.copytree(ir, tmp_path / "scores")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": "regression"}))
    with service_modules() as modules, pytest.raises(pruneofa.UserError, match="classifiers and embedding models"):
        modules["predictor"].predictor(folder)


def test_the_service_answers_over_http(ir, monkeypatch):
    monkeypatch.setenv("IR_FOLDER", str(ir))
    with service_modules() as modules, TestClient(modules["service"].app) as client:
        assert client.get("/health").json() == {"status": "ready"}
        answer = client.post("/predict", json={"texts": TEXTS}).json()["values"]
        for got, expected in zip(answer, classes(modules, ir), strict=True):
            assert got == pytest.approx(expected, abs=1e-6)
        assert client.post("/predict", json={"texts": []}).status_code == 422
        assert client.post("/predict", json={"texts": ["x" * 10_001]}).status_code == 422
        typed = client.post("/predict", json={"texts": TEXTS, "input_type": "query"})
        assert (typed.status_code, "this one is a classifier" in typed.json()["detail"]) == (422, True)

        async def overloaded(text):
            raise modules["batching"].OverloadedError("1024 requests are waiting")

        client.app.state.batcher = overloaded
        refused = client.post("/predict", json={"texts": TEXTS})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


@pytest.fixture
def prompted(tiny_bert):
    """An embedding model with a prompt for queries, another for documents, and a default one."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    encoder = Transformer(str(tiny_bert))
    prompts = {"query": "a warm ", "document": "a grim ", "plain": "a dull "}
    modules = [encoder, Pooling(encoder.get_word_embedding_dimension())]
    return SentenceTransformer(modules=modules, prompts=prompts, default_prompt_name="plain", device="cpu")


@pytest.mark.parametrize(("input_type", "prompt"), [("query", "a warm "), ("document", "a grim "), (None, "a dull ")])
def test_the_service_puts_the_prompt_of_its_type_before_a_text(prompted, input_type, prompt, monkeypatch):
    monkeypatch.setenv("IR_FOLDER", "the fixture's")
    monkeypatch.setattr(pruneofa, "load", lambda folder: prompted)
    expected = prompted.encode([prompt + text for text in TEXTS], prompt="")
    with service_modules() as modules, TestClient(modules["service"].app) as client:
        body = {"texts": TEXTS} | ({"input_type": input_type} if input_type else {})
        answer = client.post("/predict", json=body).json()["values"]
        assert client.post("/predict", json=body | {"input_type": "passage"}).status_code == 422
    assert np.array(answer) == pytest.approx(expected, abs=1e-5)
    assert not np.allclose(expected, prompted.encode(TEXTS, prompt=""), atol=1e-3)


def test_texts_of_different_types_share_a_batch_and_keep_their_order(prompted, monkeypatch):
    monkeypatch.setattr(pruneofa, "load", lambda folder: prompted)
    with service_modules() as modules:
        text = modules["predictor"].Text
        run = modules["predictor"].predictor("the fixture's").run
        mixed = [text(TEXTS[0], "document"), text(TEXTS[1]), text(TEXTS[2], "query"), text(TEXTS[0], "query")]
        assert np.array(run(mixed)) == pytest.approx(np.array([run([each])[0] for each in mixed]), abs=1e-5)


# --- other programs ---


def test_the_cpp_program_prints_the_logits_of_python(ir, logits, tmp_path):
    configure = ["-S", EXAMPLES / "cpp", "-B", tmp_path, f"-DOpenVINO_DIR={openvino.utils.get_cmake_path()}"]
    for step in (configure, ["--build", tmp_path]):
        done = subprocess.run([shutil.which("cmake"), *map(str, step)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    command = [tmp_path / "predict", kernels.extension(), ir / MODEL]
    done = subprocess.run([*map(str, [*command, *IDS])], capture_output=True, text=True, check=True)
    assert [float(line) for line in done.stdout.split()] == pytest.approx(logits.tolist(), abs=1e-5)
    failed = subprocess.run([*map(str, command[:2]), "none.xml", "2"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "none.xml" in failed.stderr


def test_the_model_servers_configuration_opens_the_ir_with_stock_openvino(ir, logits, tmp_path):
    """What the server does with `--cpu_extension` and config.json, except the server; in the layout of the document."""
    (entry,) = json.loads((EXAMPLES / "model_server" / "config.json").read_text())["model_config_list"]
    config = entry["config"]
    text = (paths.REPOSITORY / "docs" / "serving.md").read_text()
    assert (EXAMPLES / "model_server" / "config.json").read_text() in text
    assert f"{config['base_path'].lstrip('/')}/1" in text
    assert f"v2/models/{config['name']}/infer" in text
    version = tmp_path / config["base_path"].lstrip("/") / "1"
    version.mkdir(parents=True)
    for file in ir.glob("openvino_model.*"):
        shutil.copy(file, version)
    model = core().compile_model(version / MODEL, config["target_device"], config["plugin_config"])
    names = {port.get_any_name() for port in model.inputs}
    (body,) = re.findall(r"^  -d '(.*)'$", text, re.MULTILINE)
    inputs = {given["name"]: given for given in json.loads(body)["inputs"]}
    assert inputs.keys() == names
    assert {given["datatype"] for given in inputs.values()} == {"INT64"}
    for given in inputs.values():
        assert np.array(given["data"]).reshape(given["shape"]).size
    ids = np.array([IDS])
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    assert model(values)["logits"][0].tolist() == pytest.approx(logits.tolist(), abs=1e-5)


OPEN = """
import json, sys
import openvino as ov
core = ov.Core()
core.add_extension(sys.argv[1])
model = core.compile_model(sys.argv[2], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
ids = [json.loads(sys.argv[3])]
ones, zeros = [[1] * len(ids[0])], [[0] * len(ids[0])]
logits = model({"input_ids": ids, "attention_mask": ones, "token_type_ids": zeros})["logits"]
mapped = [line.split()[1] + " " + line.split()[4] for line in open("/proc/self/maps") if line.rstrip().endswith(".bin")]
print(json.dumps([logits[0].tolist(), mapped]), flush=True)
sys.stdin.read()  # until all have answered
"""


def test_processes_that_open_one_ir_map_the_same_file_and_give_the_same_answers(ir, logits):
    command = [sys.executable, "-c", OPEN, str(kernels.extension()), str(ir / MODEL), json.dumps(IDS)]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        answers = [json.loads(process.stdout.readline()) for process in both]
    finally:
        for process in both:
            process.communicate()
    assert answers[0] == answers[1]
    assert answers[0][0] == pytest.approx(logits.tolist(), abs=1e-6)
    inode = str((ir / MODEL).with_suffix(".bin").stat().st_ino)
    assert f"r--s {inode}" in answers[0][1]  # read-only and shared: its pages are in memory once


def test_the_image_is_made_of_files_and_extras_that_exist():
    text = (EXAMPLES / "Dockerfile").read_text()
    sources = re.findall(r"^COPY (?!--from)(\S+) ", text, re.MULTILINE)
    assert [source for source in sources if not (paths.REPOSITORY / source).exists()] == []
    (extras,) = re.findall(r"'\.\[(.*)\]'", text)
    setup = (paths.REPOSITORY / "setup.cfg").read_text()
    assert [extra for extra in extras.split(",") if not re.search(rf"^{extra} =$", setup, re.MULTILINE)] == []
    pins = (paths.REPOSITORY / "constraints.txt").read_text()
    (serve,) = re.findall(r"^serve =\n((?:    .+\n)+)", setup, re.MULTILINE)
    assert [name for name in serve.split() if f"\n{name}==" not in pins] == []
