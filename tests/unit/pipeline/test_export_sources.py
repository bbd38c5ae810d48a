"""Each exported variant has its own checkpoint's tokenizer, zeros and score."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conftest import vocabulary
from tests.helpers.quantization import Case
from toolkit.core.artifacts import Artifact, Context
from toolkit.core.errors import UserError
from toolkit.models.checkpoint import sparsity_by_tensor
from toolkit.models.load import load_tokenizer
from toolkit.pipeline.stages import benchmark, export
from toolkit.recipe import Benchmark, Export, Model, Quantization, Quantize, Task
from toolkit.sparsity.mask import SparsityMask
from toolkit.sparsity.mask_file import MASK_FILE

STATIC = Quantization(approach="post_training_static_quant")


@pytest.fixture(scope="module")
def made(tiny_bert, tiny_task_files, tmp_path_factory):
    """A sparse classifier without a mask file, and one that computes the same from a vocabulary in another order."""
    from transformers import BertTokenizer

    case, root = Case(tiny_bert, tiny_task_files), tmp_path_factory.mktemp("sources")
    case.model.save_pretrained(root / "sparse")
    case.tokenizer.save_pretrained(root / "sparse")
    words = vocabulary()
    order = list(range(len(words)))[::-1]
    BertTokenizer(vocab={words[old]: new for new, old in enumerate(order)}).save_pretrained(root / "other")
    embeddings = case.model.bert.embeddings.word_embeddings.weight
    with torch.no_grad():
        embeddings.copy_(embeddings[order].clone())
    case.model.config.pad_token_id = order.index(0)
    case.model.save_pretrained(root / "other")
    section = Task(train=str(tiny_task_files.train), dev=str(tiny_task_files.dev), max_seq_length=16)
    artifacts = {name: Artifact(kind="task", path=root / name, sha256=name) for name in ("sparse", "other")}
    return SimpleNamespace(section=section, mask=case.mask, **artifacts)


@pytest.fixture
def run(made, tmp_path):
    def run(variants, scores=None, progress=None, **sources):
        named = {f"{stage}_artifact": artifact for stage, artifact in sources.items()}
        (tmp_path / "export").mkdir()
        context = Context(tmp_path / "export", tmp_path / "work", 0, "toy", cache=tmp_path / "cache")
        changes = {"scores": scores or {}, "ready": frozenset(sources), "progress": progress or context.progress}
        context = replace(context, **changes)
        section = Export(variants=variants)
        return export.run(export.Inputs(Model(source="m"), made.section, None, section, **named), context)

    return run


def checks(result):
    return {check.name: check for check in result.checks}


def test_each_variant_has_the_tokenizer_of_its_own_model_and_is_measured_with_it(run, made, tmp_path):
    result = run(("dense-fp32", "sparse-fp32"), task_teacher=made.other, transfer=made.sparse)
    dense, sparse = (result.metrics["variants"][name] for name in ("dense-fp32", "sparse-fp32"))
    assert dense["torch"] == dense["ir"] == sparse["torch"] == sparse["ir"]
    for name, source in (("dense-fp32", made.other), ("sparse-fp32", made.sparse)):
        found, own = (load_tokenizer(folder) for folder in (tmp_path / "export" / name, source.path))
        assert found.get_vocab() == own.get_vocab()

    timing = {"warmup": 0, "iteration": 1, "seconds": 1, "batch_sizes": [1], "sequence_length": 8}
    section = Benchmark.model_validate({"evaluation": {"performance": timing}})
    (tmp_path / "timed").mkdir()
    context = Context(tmp_path / "timed", tmp_path / "work", 0, "toy", cache=tmp_path / "cache")
    export_artifact = Artifact(kind="ir", path=tmp_path / "export", sha256="e")
    measured = benchmark.run(benchmark.Inputs(made.section, None, None, section, export_artifact), context)
    scores = {name: found["accuracy"] for name, found in measured.metrics["variants"].items()}
    assert scores == {"dense-fp32": dense["ir"], "sparse-fp32": sparse["ir"]}
    assert all(check.ok for check in measured.checks)
    commands = [found["performance"][0]["command"] for found in measured.metrics["variants"].values()]
    assert len({command.rpartition(" -i ")[2] for command in commands}) == 2


def test_the_score_is_compared_with_the_one_that_the_stage_measured(run, made):
    result = run(("sparse-fp32",), {"transfer": {"accuracy": 0.123}}, transfer=made.sparse)
    found = checks(result)["sparse-fp32: |torch - transfer| accuracy on all 120 dev examples"]
    assert not found.ok
    change = abs(result.metrics["variants"]["sparse-fp32"]["torch"]["accuracy"] - 0.123)
    assert found.measured.startswith(f"{change:.4g}, p = ")
    assert "export.metric_tolerance" in found.instead


def test_a_ready_model_that_does_not_know_the_task_is_exported_with_a_word(run, made, monkeypatch):
    from toolkit.training import evaluation

    told = []
    monkeypatch.setattr(evaluation, "predict", lambda model, split, pad_id: np.eye(2)[1 - split.truth])
    progress = SimpleNamespace(start=lambda total: None, update=lambda *_: None, message=told.append)
    run(("sparse-fp32",), progress=progress, transfer=made.sparse)
    (line,) = told
    assert line.startswith(
        f"sparse-fp32: {made.sparse.path}: this model's accuracy is 0.0% on 120 dev examples; chance"
    )
    assert "in another order" in line


def test_the_zeros_of_a_checkpoint_are_compared_whether_or_not_it_has_a_mask_file(run, made, monkeypatch):
    from toolkit.ir import convert

    names = list(made.mask.tensors)
    assert min(sparsity_by_tensor(made.sparse.path, names).values()) > 0.8
    real = convert.export_ir

    def dense(model, *rest):
        with torch.no_grad():
            model.get_parameter(names[3])[0] = 1.0
        return real(model, *rest)

    monkeypatch.setattr(convert, "export_ir", dense)
    found = checks(run(("sparse-fp32",), transfer=made.sparse))
    assert found["sparse-fp32: pruned matrices found in the IR"].measured == len(names)
    assert not found["sparse-fp32: zeros lost in a matrix, share"].ok


def test_a_mask_file_that_does_not_fit_is_refused_by_the_export(run, made, tmp_path):
    import shutil

    folder = shutil.copytree(made.sparse.path, tmp_path / "masked")
    SparsityMask({}).save(folder / MASK_FILE)
    with pytest.raises(UserError, match="does not cover the zeros"):
        run(("sparse-fp32",), transfer=made.sparse.model_copy(update={"path": folder}))


def test_a_dense_model_that_is_only_quantized_has_dense_variants(run, made, tiny_bert, tmp_path):
    from tests.helpers.models import load_classifier
    from toolkit.models.load import save_checkpoint

    folder = tmp_path / "dense"
    save_checkpoint(load_classifier(tiny_bert, ("negative", "positive")), load_tokenizer(tiny_bert), folder)
    dense = Artifact(kind="task", path=folder, sha256="d")
    result = run(("sparse-fp32", "sparse-int8", "sparse-engine-int8"), transfer=dense)
    assert list(result.metrics["variants"]) == ["dense-fp32", "dense-int8"]
    assert result.metrics["left_out"] == {"sparse-engine-int8": "the model has no zeros"}
    assert {check.name.partition(":")[0] for check in result.checks} == {"dense-fp32", "dense-int8"}
    stored = {m["stored_type"] for m in result.metrics["variants"]["dense-int8"]["matmuls"]}
    assert "i8" in stored

    timing = {"warmup": 0, "iteration": 1, "seconds": 1, "batch_sizes": [1], "sequence_length": 8}
    section = Benchmark.model_validate({"evaluation": {"performance": timing}})
    (tmp_path / "timed").mkdir()
    context = Context(tmp_path / "timed", tmp_path / "work", 0, "toy", cache=tmp_path / "cache")
    export_artifact = Artifact(kind="ir", path=tmp_path / "export", sha256="e")
    inputs = benchmark.Inputs(
        made.section, None, Quantize(distillation=None, quantization=STATIC), section, export_artifact
    )
    found = benchmark.run(replace(inputs, transfer_artifact=dense), context).metrics
    assert found["accuracy_criterion"]["reference"] == found["variants"]["dense-fp32"]["accuracy"]["accuracy"]
    assert found["zeros_criterion"] is None
    assert found["variants"]["dense-fp32"]["chance"] is not None


def test_a_dense_model_alone_has_no_variant_for_the_sparse_engine(made, run, tiny_bert, tmp_path):
    from tests.helpers.models import load_classifier
    from toolkit.models.load import save_checkpoint

    save_checkpoint(load_classifier(tiny_bert, ("negative", "positive")), load_tokenizer(tiny_bert), tmp_path / "dense")
    with pytest.raises(UserError, match="can be made of a model without zeros"):
        run(("sparse-engine-fp32",), transfer=Artifact(kind="task", path=tmp_path / "dense", sha256="d"))


def test_the_dense_name_of_a_sparse_model_is_refused_before_it_is_exported(made, run):
    with pytest.raises(UserError, match="none of dense-fp32 has a model in this run"):
        run(("dense-fp32",), transfer=made.sparse)


def test_a_dev_split_of_a_single_example_is_enough_to_convert_a_model(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("toolkit.ir.convert.export_ir", lambda model, tokenizer, folder, sample: given.append(sample))
    monkeypatch.setattr("toolkit.models.load.save_modules", lambda *_: None)
    task, tokenizer = SimpleNamespace(dev=[{"input_ids": [5, 6], "labels": 0}]), SimpleNamespace(pad_token_id=0)
    export._ExportJob(SimpleNamespace(task=None), None, "transfer", tokenizer, task, {})._write(None, tmp_path)
    assert given[0]["input_ids"].tolist() == [[5, 6], [5, 6]]
