"""References are looked up once by one `ResolvedInputs`."""

import pytest

from toolkit.core.errors import UserError
from toolkit.data import resolved_inputs
from toolkit.data.resolved_inputs import ResolvedInputs
from toolkit.models.published import CONFIGS


def test_a_model_and_a_file_are_each_looked_up_once(tiny_bert, tiny_task_files, monkeypatch):
    asked = []
    for name in ("cached_model", "cached_file"):
        real = getattr(resolved_inputs, name)
        monkeypatch.setattr(resolved_inputs, name, lambda spec, real=real: asked.append(spec) or real(spec))
    inputs = ResolvedInputs()
    for _ in range(2):
        assert inputs.model(str(tiny_bert)).folder == tiny_bert
        assert inputs.model(str(tiny_bert)).config["hidden_size"] == 32
        assert inputs.file(str(tiny_task_files.dev)) == tiny_task_files.dev
    assert asked == [str(tiny_bert), str(tiny_task_files.dev)]


def test_what_is_on_the_hub_is_unknown_but_for_published_sizes():
    inputs = ResolvedInputs()
    assert inputs.file("hub:nobody/nothing:a:train") is None
    assert inputs.model("nobody/nothing").config is None
    assert inputs.model("google-bert/bert-base-uncased").config == CONFIGS["google-bert/bert-base-uncased"]


def test_a_damaged_config_is_named_with_its_file(tiny_bert, tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not a JSON file") as error:
        _ = ResolvedInputs().model(str(tmp_path)).config
    assert error.value.where == str(tmp_path / "config.json")
