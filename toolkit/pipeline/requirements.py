"""Optional dependencies of the stages: the extras of setup.cfg, their modules, and which are installed.

Training needs torch, transformers, datasets and accelerate, so a GPU machine that only trains installs nothing else.
"""

import importlib.util
import shlex

from toolkit.core import paths
from toolkit.core.errors import UserError
from toolkit.recipe import Benchmark, Export, Quantize, Recipe, Student, Transfer

# Extra -> distribution -> the module that is imported from it here; None: no stage fails without it.
EXTRAS: dict[str, dict[str, str | None]] = {
    "deploy": {
        "openvino": "openvino",
        "openvino-tokenizers": "openvino_tokenizers",
        "nncf": "nncf",
        "optimum-intel": None,
        "cmake": None,
        "ninja": None,
    },
    "inc": {"neural-compressor": "neural_compressor", "setuptools": "pkg_resources", "six": "six"},
    "report": {"jinja2": "jinja2"},
}
# The same for the tools of `--track`: each is an extra of its own name.
TRACKERS = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
_EXTRA_OF_BACKEND = {"inc": "inc", "nncf": "deploy"}


def install_command(extra: str) -> str:
    """Returns the command that installs an extra, from the checkout or beside the installed package."""
    if paths.IN_CHECKOUT:
        return f"pip install -c constraints.txt -e '.[{extra}]'"
    return f"pip install -c {shlex.quote(str(paths.PINS))} 'pruneofa[{extra}]'"


def missing_module(extra: str) -> str:
    """Returns the first module of an extra that is not installed, or "" if all are. Imports none of them."""
    modules = filter(None, EXTRAS[extra].values())
    return next((name for name in modules if importlib.util.find_spec(name) is None), "")


def require_tracker(name: str) -> None:
    """Checks that a tool for training curves is known and installed.

    Raises:
        UserError: It is not.
    """
    if name not in TRACKERS:
        raise UserError(f"{name!r} is no tool for training curves", where="--track", instead=" or ".join(TRACKERS))
    if importlib.util.find_spec(TRACKERS[name]) is None:
        raise UserError(f"{name} is not installed", where="--track", instead=install_command(name))


def extra_of(name: str) -> str:
    """Returns the extra that contains a distribution or module, or "" if none does."""
    top = name.lower().split(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules or top in modules.values()), "")


def extra_for(section: object) -> str:
    """Returns the extra that a stage with this recipe section requires, or "" if it requires none."""
    if isinstance(section, Quantize | Export | Benchmark):
        return "deploy"
    if isinstance(section, Student) and section.pruning and section.pruning.reconstruction:
        return ""
    if isinstance(section, Student) or (isinstance(section, Transfer) and not section.pruning.only_locks):
        return _EXTRA_OF_BACKEND.get(section.pruning.backend, "") if section.pruning else ""
    return ""


def missing_requirement(section: object) -> tuple[str, str] | None:
    """Returns a module that a stage with this section lacks and the command that installs it, or None."""
    extra = extra_for(section)
    module = missing_module(extra) if extra else ""
    return (module, install_command(extra)) if module else None


def require(stage: str, section: object) -> None:
    """Checks that the libraries of a stage are installed.

    Raises:
        UserError: A module is missing; the error names the command that installs it.
    """
    if missing := missing_requirement(section):
        raise UserError(f"this stage needs {missing[0]}, which is not installed", where=stage, instead=missing[1])


def missing_requirements(recipe: Recipe) -> list[str]:
    """Returns one line per missing module: the stages that would fail, and the command that installs it."""
    stages: dict[tuple[str, str], list[str]] = {}
    for stage in ("student", "transfer", "quantize", "export", "benchmark"):
        sections = [recipe.student] if stage == "student" else [recipe.section(stage, task) for task in recipe.tasks]
        for missing in {found for section in sections if (found := missing_requirement(section))}:
            stages.setdefault(missing, []).append(stage)
    return [f"{', '.join(names)}: {module} is not installed; {command}" for (module, command), names in stages.items()]
