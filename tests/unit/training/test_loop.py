"""What `fit` does around the Trainer's steps, tried on a tiny model that is pruned while it learns from its teacher."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel

from tests.helpers.encoders import tiny_encoders
from tests.unit.training.conftest import STEPS, UPDATES
from toolkit.core.artifacts import NullProgress
from toolkit.core.errors import UserError
from toolkit.core.files import write_atomic
from toolkit.training import distributed
from toolkit.training import hooks as training_hooks
from toolkit.training.loop import dropout


def test_processes_agree_on_the_masks_once_for_each_update_of_them(lesson, monkeypatch):
    told = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)  # of which this is the only one: its half of each batch
    monkeypatch.setattr(distributed, "assert_equal_across_ranks", lambda digest, what: told.append((digest, what)))
    done = lesson()
    assert [what for _, what in told] == ["masks"] * len(UPDATES)
    assert len({digest for digest, _ in told}) == len(UPDATES), "each mask is another one"
    assert told[-1][0] == done.sparsifier.mask.digest()
    assert done.sparsifier.mask.sparsity() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("log_every", [1, STEPS])
def test_a_training_that_diverges_stops_at_the_first_loss_that_is_not_finite(lesson, tmp_path, log_every):
    huge = {"AdamW": {"learning_rate": 1e25}}
    with pytest.raises(UserError, match="has diverged: loss is nan at step") as caught:
        lesson(optimizer=huge, log_every=log_every, checkpoint_every=1)
    assert caught.value.what.endswith("step 2")  # the first after a step of that size; the curve has no point there
    assert caught.value.where == "train.optimizer of run"
    assert caught.value.instead == "a learning_rate below 1e+25, or a longer warm-up"


def test_a_training_whose_last_step_breaks_the_weights_fails(lesson):
    with pytest.raises(UserError, match="weights that are NaN or infinite"):
        lesson(steps=1, optimizer={"AdamW": {"learning_rate": 1e39}}, pruned=False)


def test_no_process_waits_for_others_where_there_are_none(lesson, monkeypatch):
    monkeypatch.setattr(
        distributed, "assert_equal_across_ranks", lambda *_: pytest.fail("there is nobody to agree with")
    )
    lesson()


class Killed(BaseException):
    """What no code catches, as SIGKILL."""


def test_speed_is_that_of_all_steps_whichever_process_made_them(lesson, monkeypatch):
    now = 0.0

    class TwoSeconds(NullProgress):
        """How long a step takes; the process is killed at the end of step `last`."""

        def __init__(self, last=STEPS + 1):
            self.last = last

        def update(self, step, **figures):
            nonlocal now
            now += 2
            if step == self.last:
                raise Killed

    monkeypatch.setattr(training_hooks, "time", SimpleNamespace(monotonic=lambda: now))
    assert lesson("through", TwoSeconds()).fitted.seconds_per_step == 2
    with pytest.raises(Killed):
        lesson(progress=TwoSeconds(last=10), checkpoint_every=4)
    for left in (4, 0):  # steps to make
        now += 3600
        before = now
        assert lesson(progress=TwoSeconds(), checkpoint_every=4).fitted.seconds_per_step == 2
        assert now == before + 2 * left


@pytest.fixture
def killed_writing(monkeypatch):
    """Kills the process, so to speak, when the text lies on the disk but the file has not got its name."""

    def arm(wanted):
        def replace(self, target):
            if wanted(Path(target)):
                raise Killed
            return kept(self, target)

        kept = Path.replace
        monkeypatch.setattr(Path, "replace", replace)

    yield arm
    monkeypatch.undo()


def test_a_kill_while_a_checkpoint_gets_its_last_file_costs_that_checkpoint_only(lesson, killed_writing, monkeypatch):
    through = lesson(folder="through", checkpoint_every=4)
    killed_writing(lambda path: path.name == "whole.json" and path.parent.name == "checkpoint-8")
    with pytest.raises(Killed):
        lesson(checkpoint_every=4)
    monkeypatch.undo()
    said, progress = [], NullProgress()
    monkeypatch.setattr(progress, "message", said.append)
    resumed = lesson(checkpoint_every=4, progress=progress)
    assert said == ["checkpoint-8 is incomplete, falling back to the previous one", "resuming from step 4"]
    assert resumed.fitted.history == through.fitted.history
    for name, weight in resumed.model.state_dict().items():
        assert torch.equal(weight, through.model.state_dict()[name]), name


@pytest.mark.parametrize("before", [None, "old"])
def test_a_kill_while_a_file_is_written_leaves_what_was_there(tmp_path, killed_writing, before):
    path = tmp_path / "record.json"
    if before:
        path.write_text(before)
    killed_writing(lambda target: target == path)
    with pytest.raises(Killed):
        write_atomic(path, "new")
    assert (path.read_text() if path.is_file() else None) == before


@pytest.fixture(scope="module")
def encoders(tiny_bert, tiny_text, tmp_path_factory):
    return tiny_encoders(tiny_bert, tiny_text, tmp_path_factory)


@pytest.mark.parametrize("name", ["bert", "distilbert", "albert", "mpnet", "deberta-v2", "modernbert"])
def test_no_dropout_of_any_architecture_is_left_out_and_all_come_back(encoders, name):
    model = AutoModel.from_pretrained(encoders[name]).train()
    if name == "modernbert":  # its configuration has none
        for layer in model.layers:
            layer.attn.attention_dropout = 0.5
    ids = torch.randint(10, 60, (2, 20), generator=torch.Generator().manual_seed(0))

    def differ() -> bool:
        first, second = (model(input_ids=ids).last_hidden_state for _ in range(2))
        return not torch.equal(first, second)

    before = differ()
    assert before or name == "albert"  # whose configuration has none either
    with dropout(model, 0.5):
        assert differ()
    with dropout(model, 0.0):
        assert not differ()
    with dropout(model, None):
        assert differ() == before


def test_a_training_without_dropout_has_none_and_leaves_the_model_as_it_was(lesson):
    with_it, without = lesson("with", dropout=None), lesson("without", dropout=0.0)
    assert with_it.fitted.history[0] != without.fitted.history[0]
    assert without.model.config.hidden_dropout_prob == with_it.model.config.hidden_dropout_prob > 0
    assert without.model.bert.embeddings.dropout.p == with_it.model.bert.embeddings.dropout.p > 0
    assert lesson("again", dropout=0.0).fitted.history == without.fitted.history
    torch.manual_seed(5)
    batch = without.data.collate([without.data.stream[0]])
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    assert not torch.equal(without.model.train()(**inputs).logits, without.model(**inputs).logits)
