"""The shape of the house: who may import whom, and what the light commands may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import toolkit
from toolkit.core.paths import REPOSITORY
from toolkit.models.load import load_masked_lm, load_tokenizer, prunable_matrices, save_checkpoint
from toolkit.sparsity.mask import SparsityMask
from toolkit.sparsity.mask_file import MASK_FILE

ROOT = Path(toolkit.__file__).parent
MODULES = sorted(p for p in ROOT.rglob("*.py"))

# Library -> the files that may import it. These libraries drop features on short notice: one door each.
DOORS = {
    "nncf": {"sparsity/backends/nncf.py", "quantization/"},
    "neural_compressor": {"sparsity/backends/inc.py"},
    "openvino": {"ir/", "measure/", "quantization/nncf.py"},
    "optimum": {"ir/"},
    "jinja2": {"reporting/"},
    "typer": {"cli/"},
}
# The layers, top first: a package imports only from rows below its own.
LAYERS = [
    {"__main__", "api", "kernels"},
    {"cli"},
    {"pipeline", "reporting"},
    {"training", "quantization", "measure"},
    {"data", "sparsity"},
    {"models", "ir"},
    {"recipe"},
    {"core"},
]


MOST_PACKAGES, MOST_FILES, MOST_LINES = 12, 17, 400


def imported(path: Path, *, runtime: bool = False) -> set[str]:
    """Every module that a file imports, anywhere in it, as dotted names; `runtime`: not for type checkers."""
    tree = ast.parse(path.read_text())
    ignored: set[ast.AST] = set()
    if runtime:
        blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
        ignored = {inner for block in blocks for inner in ast.walk(block)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in ignored:
            continue
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


def test_there_are_twelve_packages_at_most_and_each_file_is_short():
    packages = {p.name for p in ROOT.iterdir() if (p / "__init__.py").is_file()}
    assert packages == {name for layer in LAYERS for name in layer} - {"__main__", "api", "kernels"}
    assert len(packages) <= MOST_PACKAGES
    for folder in {path.parent for path in MODULES}:
        assert len(list(folder.glob("*.py"))) <= MOST_FILES, folder
    others = [path for folder in ("tests", "benchmarks", "examples") for path in (REPOSITORY / folder).rglob("*.py")]
    for path in (*MODULES, *others):
        assert len(path.read_text().splitlines()) <= MOST_LINES, path


def module_of(name: str) -> str | None:
    """The module that an imported name belongs to; None: none of the toolkit's."""
    parts = name.split(".")
    for length in range(len(parts), 1, -1):
        path = ROOT.parent.joinpath(*parts[:length])
        if path.with_suffix(".py").is_file():
            return ".".join(parts[:length])
        if (path / "__init__.py").is_file():
            return ".".join(parts[:length])
    return None


def test_no_modules_import_each_other_in_a_circle():
    graph = {}
    for path in MODULES:
        own = module_of(".".join(("toolkit", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"))
        graph[own] = {m for n in imported(path, runtime=True) if n.startswith("toolkit.") and (m := module_of(n))}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above[above.index(module) :], module))
        if module not in done:
            for other in sorted(graph.get(module, set()) - {module}):
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


STAGES = ROOT / "pipeline" / "stages"


@pytest.mark.parametrize("path", sorted(STAGES.glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_a_stage_imports_no_other_and_a_helper_belongs_to_one(path):
    for name in imported(path):
        if name.startswith("toolkit.pipeline.stages."):
            assert name.split(".")[3].startswith(f"{path.stem}_"), f"{path.stem} imports {name}"


def test_only_the_command_line_reads_incs_files():
    readers = {
        name_of(path).split("/")[0] for path in MODULES if any("toolkit.recipe.inc" in name for name in imported(path))
    }
    assert readers == {"cli", "recipe"}
    outside = [p for p in ROOT.glob("recipe/*.py") if any("toolkit.recipe.inc" in name for name in imported(p))]
    assert not outside


def loaded_after(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter that has run `code`."""
    script = f"import sys\n{code}\nprint(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


HEAVY = {"torch", "transformers", "openvino", "nncf", "neural_compressor", "datasets", "sklearn"}


# What a light command may load: each of these files costs no heavy library.
LIGHT = [
    *(
        "core",
        "recipe",
        "recipe/inc",
        "reporting",
        "reporting/scoreboard",
        "cli",
        "ir/kernels",
        "pipeline",
        "data/tables",
    ),
    *(f"models/{name}.py" for name in ("architectures", "published", "sources", "checkpoint")),
    *(f"data/{name}.py" for name in ("files", "hub", "published", "documents", "task_rows", "question_answering")),
    "data/corpus/segment_pairs.py",
    *(f"data/{name}.py" for name in ("metrics", "masking", "unlabelled", "labels", "task_kinds", "resolved_inputs")),
    *(f"sparsity/{name}.py" for name in ("assignment", "schedule", "mask_file")),
    *(f"training/{name}.py" for name in ("lr_schedule", "distributed")),
]


def test_what_light_commands_use_loads_no_heavy_library():
    files = [f for entry in LIGHT for f in ([ROOT / entry] if entry.endswith(".py") else (ROOT / entry).glob("*.py"))]
    names = [".".join(("toolkit", *f.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__") for f in files]
    assert len(names) > 80
    assert not loaded_after(f"import {', '.join(names)}") & HEAVY


def test_help_loads_neither_the_recipe_nor_pydantic():
    """They would double the time that `--help` takes."""
    assert not loaded_after("import toolkit.cli, pruneofa") & {"pydantic", "yaml", "numpy"}


def test_checking_a_recipe_with_all_rows_of_its_tasks_loads_no_heavy_library(tiny_bert, tiny_task_files):
    task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev)}
    values = {"name": "r", "model": {"source": str(tiny_bert)}, "tasks": {"toy": task}}
    code = (
        "from toolkit.pipeline.preflight import check_recipe\nfrom toolkit.recipe import Recipe\n"
        f"assert '480 training rows' in dict(check_recipe(Recipe.model_validate({values!r})))['task toy']"
    )
    assert not loaded_after(code) & HEAVY


def test_checking_a_ready_sparse_model_and_its_mask_file_loads_no_heavy_library(tiny_bert, tiny_task_files, tmp_path):
    model = load_masked_lm(tiny_bert)
    matrices = prunable_matrices(model)
    with torch.no_grad():
        for module in matrices.values():
            module.weight[:, ::2] = 0.0
    save_checkpoint(model, load_tokenizer(tiny_bert), tmp_path)
    SparsityMask.from_zeros({name: module.weight for name, module in matrices.items()}).save(tmp_path / MASK_FILE)
    task = {"train": str(tiny_task_files.train), "dev": str(tiny_task_files.dev)}
    values = {"name": "r", "model": {"source": str(tmp_path)}, "ready": {"student": str(tmp_path)}}
    values |= {"tasks": {"toy": task}, "transfer": {"pruning": {"train": {"epoch": 1}}}}
    code = (
        "from toolkit.pipeline.preflight import check_recipe\nfrom toolkit.recipe import Recipe\n"
        f"assert '50.00%' in dict(check_recipe(Recipe.model_validate({values!r})))['locked']"
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
