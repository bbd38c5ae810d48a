"""A tiny model that is pruned while it learns from its teacher."""

from types import SimpleNamespace

import pytest

from toolkit.core.artifacts import Context, NullProgress
from toolkit.data.corpus import load_corpus
from toolkit.models.load import load_masked_lm, load_tokenizer, prunable_matrices
from toolkit.models.mlm_heads import mlm_head
from toolkit.recipe import Corpus, Pruning, Train
from toolkit.sparsity.factory import make_sparsifier
from toolkit.training.datasets import mlm_data
from toolkit.training.distillation import MlmLoss, Teacher
from toolkit.training.loop import fit, seed_everything

STEPS, START, UPDATES = 12, 2, (4, 6, 8)  # at its start a ramp prunes nothing yet


@pytest.fixture
def lesson(tiny_bert, tiny_text, tmp_path):
    """Trains a copy of the tiny model: (how it went, the model, its sparsifier)."""
    tokenizer = load_tokenizer(tiny_bert)
    section = Corpus(files=(str(tiny_text),), max_seq_length=24)
    text = load_corpus(section, {}, tokenizer, tmp_path / "cache").train
    compression = {"target_sparsity": 0.8, "start_step": START, "end_step": UPDATES[-1]}
    approach = {"weight_compression": compression | {"update_frequency_on_step": 2}}
    pruning = Pruning.model_validate({"backend": "magnitude", "approach": approach})

    def run(folder="run", progress=None, pruned=True, tracking=None, **settings):
        train = Train.model_validate({"steps": STEPS, "batch_size": 8, "log_every": 1} | settings)
        seed_everything(0)
        student, teacher = (load_masked_lm(tiny_bert) for _ in range(2))
        sparsifier = make_sparsifier(pruning, prunable_matrices(student), 0) if pruned else None
        data = mlm_data(text, tokenizer, section, "masked", train, seed=3)
        loss = MlmLoss(mlm_head, Teacher(teacher))
        at = tmp_path / folder
        context = Context(at, at / "work", 0, progress=progress or NullProgress(), tracking=tracking)
        fitted = fit(student, data, train, loss, context, sparsifier=sparsifier)
        return SimpleNamespace(fitted=fitted, model=student, sparsifier=sparsifier, data=data)

    return run
