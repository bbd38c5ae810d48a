"""The shape of the house: who may import whom, and what the light commands may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import toolkit

ROOT = Path(toolkit.__file__).parent
MODULES = sorted(p for p in ROOT.rglob("*.py"))

# Library -> the files that may import it. These libraries drop features on short notice: one door each.
DOORS = {
    "nncf": {"sparsity/backends/nncf.py", "quantization/"},
    "neural_compressor": {"sparsity/backends/inc.py"},
    "openvino": {"ir/", "measure/", "quantization/nncf.py"},
    "optimum": {"ir/"},
    "plotly": {"reporting/"},
    "jinja2": {"reporting/"},
    "typer": {"cli/"},
}
# The layers, top first: a package imports only from rows below its own.
LAYERS = [
    {"__main__", "kernels"},
    {"cli"},
    {"pipeline", "reporting"},
    {"training", "quantization", "measure"},
    {"data", "sparsity"},
    {"models", "ir"},
    {"recipe"},
    {"core"},
]


def imported(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, as dotted names."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{a.name}" for a in node.names}
    return names


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def layer_of(top: str) -> int | None:
    return next((i for i, layer in enumerate(LAYERS) if top in layer), None)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_each_library_is_imported_only_behind_its_door(path):
    tops = {n.split(".")[0] for n in imported(path)}
    for library, doors in DOORS.items():
        if library in tops:
            assert any(name_of(path).startswith(d) for d in doors), f"{name_of(path)} imports {library}"


@pytest.mark.parametrize("path", [p for p in MODULES if p != ROOT / "__init__.py"], ids=name_of)
def test_imports_go_down_the_layers(path):
    own = name_of(path).removesuffix(".py").split("/")[0]
    here = layer_of(own)
    assert here is not None, f"{name_of(path)} is in no layer: give it a place in LAYERS"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "toolkit" or len(parts) < 2 or parts[1] in (own, "__version__"):
            continue
        there = layer_of(parts[1])
        assert there is not None, f"{name_of(path)} imports {name}"
        assert there > here, f"{name_of(path)} imports {name}, which is not below it"


def loaded_after(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter that has run `code`."""
    script = f"import sys\n{code}\nprint(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


HEAVY = {"torch", "transformers", "openvino", "nncf", "neural_compressor", "datasets", "plotly", "sklearn"}


def test_planning_modules_load_no_heavy_library():
    assert (
        not loaded_after("import toolkit.cli, toolkit.pipeline.run, toolkit.pipeline.preflight, toolkit.recipe.load")
        & HEAVY
    )


def test_checking_a_recipe_with_all_rows_of_its_tasks_loads_no_heavy_library(tiny_bert, tiny_task_files):
    task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev)}
    values = {"name": "r", "model": {"source": str(tiny_bert)}, "tasks": {"toy": task}}
    code = (
        "from toolkit.pipeline.preflight import check_recipe\nfrom toolkit.recipe import Recipe\n"
        f"assert '480 rows' in dict(check_recipe(Recipe.model_validate({values!r})))['task toy']"
    )
    assert not loaded_after(code) & HEAVY


def test_training_modules_load_neither_openvino_nor_nncf_nor_inc():
    loaded = loaded_after(
        "import toolkit.training.loop, toolkit.sparsity.backends.magnitude, toolkit.training.distillation"
    )
    assert "torch" in loaded
    assert not loaded & {"openvino", "nncf", "neural_compressor"}


def test_reporting_loads_neither_torch_nor_openvino():
    assert not loaded_after("import toolkit.reporting") & {"torch", "openvino"}
