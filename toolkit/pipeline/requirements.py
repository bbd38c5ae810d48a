"""The libraries that only some stages need, the extras of setup.cfg that bring them, and which of them are here.

Training needs torch, transformers, datasets and accelerate, so a GPU machine that only trains installs nothing else.
"""

import importlib.util

from toolkit.core.errors import UserError
from toolkit.recipe import Benchmark, Export, Quantize, Recipe, Student, Transfer

# Extra -> what it brings: distribution, and the module that is imported of it here; None: nothing fails without it.
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
    "report": {"jinja2": "jinja2", "plotly": "plotly"},
}
_OF_BACKEND = {"inc": "inc", "nncf": "deploy"}


def install_command(extra: str) -> str:
    """The command that brings an extra."""
    return f"pip install -c constraints.txt -e '.[{extra}]'"


def missing_module(extra: str) -> str:
    """The first module of an extra that is not installed; empty where all of them are. Loads none of them."""
    modules = filter(None, EXTRAS[extra].values())
    return next((name for name in modules if importlib.util.find_spec(name) is None), "")


def extra_of(name: str) -> str:
    """The extra that brings a distribution or a module; empty: none."""
    top = name.lower().split(".")[0]
    return next((extra for extra, brings in EXTRAS.items() if top in brings or top in brings.values()), "")


def extra_for(section: object) -> str:
    """The extra that a stage with this section of a recipe cannot do without; empty: none."""
    if isinstance(section, Quantize | Export | Benchmark):
        return "deploy"
    if isinstance(section, Student) or (isinstance(section, Transfer) and not section.pruning.only_locks):
        return _OF_BACKEND.get(section.pruning.backend, "")
    return ""


def missing_requirement(section: object) -> tuple[str, str] | None:
    """The module that a stage with this section needs and that is not installed, and how to install it; None: none."""
    extra = extra_for(section)
    module = missing_module(extra) if extra else ""
    return (module, install_command(extra)) if module else None


def require(stage: str, section: object) -> None:
    """Raises a UserError that names the extra to install, where a stage needs one that is not here."""
    if lacks := missing_requirement(section):
        raise UserError(f"this stage needs {lacks[0]}, which is not installed", where=stage, instead=lacks[1])


def missing_requirements(recipe: Recipe) -> list[str]:
    """Which stages will stop for want of a library, and what to install, line by line."""
    stages: dict[tuple[str, str], list[str]] = {}
    for stage in ("student", "transfer", "quantize", "export", "benchmark"):
        sections = [recipe.student] if stage == "student" else [recipe.section(stage, task) for task in recipe.tasks]
        for lacks in {lacks for section in sections if (lacks := missing_requirement(section))}:
            stages.setdefault(lacks, []).append(stage)
    return [f"{', '.join(names)}: {module} is not installed; {how}" for (module, how), names in stages.items()]
