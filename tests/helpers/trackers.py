"""Stand-ins for MLflow and W&B, which only note what the callbacks of transformers' Trainer call."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest


class Calls(list):
    """A list of (name, named arguments), and functions that add to it."""

    def of(self, name):
        return [values for called, values in self if called == name]

    def function(self, name):
        return lambda *given, **named: self.append((name, named | dict(enumerate(given))))


def install(monkeypatch, name, **content):
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    for key, value in content.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def mlflow_calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Puts a stand-in in the place of MLflow, and returns the calls that it will get."""
    calls, limits = Calls(), SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)
    names = ("start_run", "log_params", "set_tags", "log_metrics", "end_run", "set_tracking_uri")
    module = install(monkeypatch, "mlflow", **{name: calls.function(name) for name in names})
    module.__version__, module.utils = "3.0.0", SimpleNamespace(validation=limits)
    module.is_tracking_uri_set = lambda: False
    run = SimpleNamespace(info=SimpleNamespace(run_id="1"))
    module.active_run = lambda: run if len(calls.of("start_run")) > len(calls.of("end_run")) else None
    return calls


def wandb_calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The same for W&B."""
    calls = Calls()
    module = install(monkeypatch, "wandb", run=None, config={}, define_metric=calls.function("define_metric"))
    for name in ("wandb.sdk", "wandb.sdk.lib", "wandb.sdk.lib.config_util"):
        install(monkeypatch, name, ConfigError=ValueError, __path__=[])

    def init(**named):
        calls.append(("init", named))
        module.run = SimpleNamespace(_label=lambda **_: None, summary={}, name=named["name"], id="1")

    def finish(**named):
        calls.append(("finish", named))
        module.run = None

    module.init, module.finish, module.log = init, finish, calls.function("log")
    return calls
