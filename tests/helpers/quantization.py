"""What the tests of quantization share: a sparse tiny classifier, and how it is quantized, asked and exported."""

import torch

from tests.helpers.models import load_classifier
from toolkit.data.batches import model_inputs, pad
from toolkit.data.tasks import load_task
from toolkit.ir.convert import export_ir
from toolkit.measure.accuracy import predict_ir
from toolkit.models.load import load_tokenizer, prunable_matrices
from toolkit.quantization import nncf
from toolkit.recipe import Quantization, Task
from toolkit.sparsity.mask import SparsityMask
from toolkit.training.evaluation import predict

LAYER = "bert.encoder.layer."
FP32 = {"weight": {"dtype": "fp32"}, "activation": {"dtype": "fp32"}}
PER_TENSOR = {"weight": {"granularity": "per_tensor"}}
STATIC = {"approach": "post_training_static_quant"}


class Case:
    """A classifier with 90 % zeros in its encoder and logits of ordinary size, and what is needed around it.

    Args:
        folder: Its checkpoint.
        files: Of its task.
        block: How many neighbouring rows are zero together.
    """

    def __init__(self, folder, files, block=1):
        self.tokenizer = load_tokenizer(folder)
        section = Task(train=str(files.train), dev=str(files.dev), max_seq_length=16)
        self.task = load_task("toy", section, self.tokenizer)
        torch.manual_seed(0)
        self.model = load_classifier(folder, self.task.labels).eval()
        self.folder = folder
        weights = {n: m.weight for n, m in prunable_matrices(self.model).items()}
        with torch.no_grad():
            for weight in (*weights.values(), self.model.classifier.weight, self.model.bert.pooler.dense.weight):
                weight *= 8  # the fresh weights of a tiny model are too small to tell formats apart
            for name, bias in self.model.named_parameters():
                if name.endswith(".bias"):
                    bias += 0.1 * torch.randn_like(bias)
        kept = {n: torch.rand_like(w[::block]).repeat_interleave(block, dim=0) >= 0.9 for n, w in weights.items()}
        self.mask = SparsityMask(kept)
        self.mask.apply_(weights)
        self.batches = nncf.calibration_batches(self.collate, self.task.train, 16)

    def collate(self, features):
        return pad(features, self.tokenizer.pad_token_id)

    def quantized(self, **changes):
        section = Quantization.model_validate({"overflow_fix": "disable"} | changes)
        return nncf.quantized(self.model, self.batches, section), section

    def logits(self, model):
        return predict(model, self.task.dev, self.tokenizer.pad_token_id)

    def export(self, model, folder):
        export_ir(model, self.tokenizer, folder, model_inputs(self.collate([self.task.dev[0], self.task.dev[1]])))
        return predict_ir(folder, self.task.dev, self.tokenizer.pad_token_id, per_token=False)

    def plain(self):
        return load_classifier(self.folder, self.task.labels)


def state_of(model):
    return {n: v.clone() for n, v in model.state_dict().items()}


def same(first, second):
    return list(first) == list(second) and all(torch.equal(v, second[n]) for n, v in first.items())
