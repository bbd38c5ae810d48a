"""Documents: commands parse, recipes validate, imports resolve, paths and links exist."""

import ast
import importlib
import importlib.util
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import yaml
from typer.main import get_command

from toolkit.cli import app
from toolkit.core import paths
from toolkit.core.errors import UserError
from toolkit.recipe import Recipe
from toolkit.recipe.load import load_recipe, parse_recipe

ROOT = paths.REPOSITORY
TOP = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "examples/README.md")
DOCUMENTS = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = sorted((ROOT / "benchmarks").rglob("*.md"))
SHELL = ("", "sh", "bash", "console")
README_LINES = 150

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")
FILE = re.compile(r"[\w.-]+(?:/[\w.-]+)+\.(?:py|cpp|h|yaml|txt)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
OWN_PATHS = re.compile(r"(?:toolkit|tests|native|benchmarks|yaml_configs)/")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- reading documents ---


@dataclass(frozen=True)
class Block:
    document: str
    language: str
    text: str


def blocks_of(path: Path) -> list[Block]:
    return [Block(name_of(path), *found) for found in FENCE.findall(path.read_text())]


def prose_of(text: str) -> str:
    return FENCE.sub("", text)


def command_lines(text: str) -> list[list[str]]:
    """The words of each command of a shell block: without comments and redirections; of `$(…)` too."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for inner in re.findall(r"\$\(([^)]*)\)", line):
            found.append(shlex.split(inner))
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a diagram
            continue
        words = [word for word in words if word != "…"]
        found.append(words[: words.index(">")] if ">" in words else words)
    return [words for words in found if words]


def own_command(words: list[str]) -> list[str] | None:
    """The arguments of `pruneofa …` or `… -m toolkit …`; None: another program."""
    if words[0] == "pruneofa":
        return words[1:]
    if "-m" in words and words[words.index("-m") + 1 :][:1] == ["toolkit"]:
        return words[words.index("-m") + 2 :]
    return None


BLOCKS = [block for path in DOCUMENTS for block in blocks_of(path)]
COMMANDS = [(b.document, words) for b in BLOCKS if b.language in SHELL for words in command_lines(b.text)]
MENTIONED = [
    (name_of(path), words)
    for path in DOCUMENTS
    for code in CODE.findall(prose_of(path.read_text()))
    for words in command_lines(code)
]
OWN = [(document, args) for document, words in COMMANDS if (args := own_command(words)) is not None]
OWN_MENTIONED = [(document, args) for document, words in MENTIONED if (args := own_command(words)) is not None]
TARGETS = [(document, words[1:]) for document, words in COMMANDS + MENTIONED if words[0] == "make"]


# --- what is checked ---


def parsed(args: list[str]) -> click.Context:
    """The context in which a command line would run; nothing is executed.

    Raises:
        click.UsageError: There is no such command or option, or a value is missing.
    """
    assert "--install-completion" not in args, "parsing it installs it, in the home folder"
    command, context, name = get_command(app), None, "pruneofa"
    while hasattr(command, "resolve_command"):
        context = click.Context(command, info_name=name, parent=context)
        if not args or args[0].startswith("-"):
            break
        name, command, args = command.resolve_command(context, list(args))
    return command.make_context(name, list(args), parent=context)


def recipe_of(args: list[str]) -> Recipe | None:
    """The recipe that a command line names, with its overrides; None: no recipe, or one that is not shipped."""
    values = parsed(args).params
    path = values.get("recipe")
    if args[0] not in ("run", "check", "plan") or not path or not (ROOT / path).is_file():
        return None
    return load_recipe(ROOT / path, values.get("overrides") or ())


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))


def unresolved_imports(code: str) -> list[str]:
    """What a Python example imports, or takes from a module of the toolkit, and is not there."""
    tree, modules, missing = ast.parse(code), {}, []
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            missing += [name for name in names if not _is_module(name)]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] != "toolkit":
            missing += [] if _is_module(node.module or "") else [node.module]
        elif isinstance(node, ast.ImportFrom):
            for name in names:
                found = _attribute(node.module or "", name)
                modules |= {name: found}
                missing += [] if found is not None else [f"{node.module}.{name}"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and modules.get(node.value.id):
            missing += [] if hasattr(modules[node.value.id], node.attr) else [f"{node.value.id}.{node.attr}"]
    return missing


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _attribute(module: str, name: str) -> object | None:
    try:
        found = getattr(importlib.import_module(module), name, None)
        return found if found is not None else importlib.import_module(f"{module}.{name}")
    except ImportError:
        return None


def recipe_in(text: str) -> Recipe | None:
    """The recipe that a YAML example holds; of sections alone, with a name and models put before them; else None."""
    keys = set(yaml.safe_load(text))
    if not keys <= set(Recipe.model_fields):
        return None
    if {"name", "model"} <= keys:
        return parse_recipe(text, "example")
    return parse_recipe("name: example\nmodel: {source: model}\nready: {student: model}\n" + text, "example")


def missing_files(text: str) -> list[str]:
    """Paths that a document mentions and that are not in the repository; `toolkit/` and the like may be left out."""
    found = {path for path in FILE.findall(text) if OWN_PATHS.match(path)}
    found |= {path for code in CODE.findall(prose_of(text)) for path in FILE.findall(code) if "runs/" not in path}
    roots = (ROOT, ROOT / "toolkit", ROOT / "yaml_configs", ROOT / "benchmarks")
    return sorted(path for path in found if not any((root / path).is_file() for root in roots))


def broken_links(path: Path, text: str) -> list[str]:
    """Relative links of a document whose file, or heading in it, is not there."""
    broken = []
    for link in LINK.findall(prose_of(text)):
        target, _, anchor = link.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            broken.append(link)
    return broken


def anchors(text: str) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in HEADING.findall(text)}


# --- the documents ---


@pytest.mark.parametrize(("document", "args"), OWN, ids=lambda v: v if isinstance(v, str) else " ".join(v)[:60])
def test_a_command_in_a_block_parses_and_its_overrides_fit_the_recipe(document, args):
    try:
        parsed(args)
        recipe_of(args)
    except (click.UsageError, UserError) as error:
        pytest.fail(f"{document}: pruneofa {' '.join(args)}: {getattr(error, 'message', error)}")


def test_a_command_named_in_the_text_exists_with_the_options_named():
    for document, args in OWN_MENTIONED:
        if args in ([], ["--help"], ["--install-completion"]):
            continue
        try:
            parsed(args)
        except click.MissingParameter:  # the text names a command, not a complete line
            continue
        except click.UsageError as error:
            pytest.fail(f"{document}: pruneofa {' '.join(args)}: {error.message}")


def test_every_make_target_is_in_the_makefile():
    assert [(d, words) for d, words in TARGETS if not set(words) <= makefile_targets()] == []


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=lambda b: b.document)
def test_a_python_example_compiles_and_its_names_resolve(block):
    assert unresolved_imports(block.text) == []


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.name)
def test_the_names_that_a_benchmark_imports_resolve(script, monkeypatch):
    monkeypatch.syspath_prepend(str(script.parent))
    others = {"onnxruntime", "onnxruntime.quantization", "deepsparse"}  # engines compared with; installed on demand
    assert set(unresolved_imports(script.read_text(encoding="utf-8"))) <= others


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=lambda b: b.document)
def test_a_recipe_of_the_documents_validates(block):
    assert recipe_in(block.text) is not None


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_file_that_a_document_names_exists(path):
    assert missing_files(path.read_text()) == []


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CHANGELOG.md", *RESULTS], ids=name_of)
def test_every_relative_link_leads_to_a_file_and_heading(path):
    assert broken_links(path, path.read_text()) == []


def test_the_readme_is_short_and_marks_the_results_of_the_quickstart():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= README_LINES
    assert re.search(r"<!-- quickstart results -->\n\| variant .*?<!-- end -->", text, re.DOTALL)


def test_the_documents_have_examples_of_each_kind():
    assert len(OWN) > 20
    assert len(OWN_MENTIONED) > 15
    assert len(TARGETS) > 5
    assert {"python", "yaml"} <= {b.language for b in BLOCKS}
    assert RESULTS


# --- each check can fail ---


@pytest.mark.parametrize(
    "line", ["run --no-such-option", "no-such-command", "kernels no-such", "unpack", "bench --length x A"]
)
def test_a_wrong_command_line_is_found(line):
    with pytest.raises(click.UsageError):
        parsed(line.split())


def test_a_wrong_override_is_found():
    with pytest.raises(UserError, match="no_such_key"):
        recipe_of(["run", "yaml_configs/quickstart.yaml", "no_such_key=1"])


def test_continued_lines_comments_and_inner_commands_are_read():
    text = "pruneofa run a.yaml \\\n  b=1  # why\npruneofa inc explain x > y\ntool $(pruneofa kernels path)\n"
    found = [own_command(words) for words in command_lines(text)]
    assert found == [["run", "a.yaml", "b=1"], ["inc", "explain", "x"], ["kernels", "path"], None]
    assert own_command(["torchrun", "--nproc_per_node", "2", "-m", "toolkit", "run", "r.yaml"]) == ["run", "r.yaml"]


@pytest.mark.parametrize(
    "code",
    [
        "import no_such_library",
        "from no_such_library.part import x",
        "from toolkit.ir import no_such",
        "from toolkit.no_such import x",
        "from toolkit.ir import kernels\nkernels.no_such()",
    ],
)
def test_an_import_that_does_not_resolve_is_found(code):
    assert unresolved_imports(code)


def test_a_wrong_recipe_is_found():
    with pytest.raises(UserError, match="stepz"):
        recipe_in("name: a\nmodel: {source: b}\ntask_teacher: {train: {stepz: 1}}\n")
    with pytest.raises(UserError, match="no_such"):
        recipe_in("tasks: {a: {preset: no_such}}\n")
    assert recipe_in("pruning: {}\n") is None


def test_a_missing_file_is_found():
    text = "`toolkit/no_such.py`, toolkit/core/errors.py, `ir/no_such.py`\n```\npython benchmarks/no_such.py\n```\n"
    assert missing_files(text) == ["benchmarks/no_such.py", "ir/no_such.py", "toolkit/no_such.py"]


def test_a_broken_link_is_found():
    text = "[a](docs/no_such.md) [b](README.md#no-such) [c](README.md#what-to-expect) [d](https://x.org/y) [e](docs)"
    assert broken_links(ROOT / "README.md", text) == ["docs/no_such.md", "README.md#no-such"]


def test_an_unknown_make_target_is_found():
    assert {"quickstart", "test", "lint", "install", "clean"} <= makefile_targets()
    assert "no-such" not in makefile_targets()
    assert "export" not in makefile_targets()
