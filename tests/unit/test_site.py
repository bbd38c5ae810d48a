"""The site of docs/ by mkdocs, and files that code hosts and other tools read: citation, issue forms, pre-commit."""

import importlib.util
import re
import subprocess
import sys

import yaml

import toolkit
from toolkit.core import paths

ROOT = paths.REPOSITORY
HOOK = ROOT / "docs" / "site_links.py"


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


def pages(nav):
    """Every page of a navigation, at any depth."""
    for entry in nav:
        for value in entry.values():
            yield from pages(value) if isinstance(value, list) else [value]


def site_links(text, page):
    spec = importlib.util.spec_from_file_location("site_links", HOOK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.site_links(text, page)


def test_the_navigation_has_every_page_once():
    found = list(pages(read("mkdocs.yml")["nav"]))
    assert sorted(found) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_a_link_to_a_page_or_a_record_is_kept_and_one_to_another_file_is_text():
    record, *_ = sorted(path.name for path in (ROOT / "benchmarks/results").glob("*quickstart.md"))
    kept = "[a](api.md#load) [b](#here) [c](https://x.org/y)"
    assert site_links(kept, "serving.md") == kept
    assert site_links(f"[a](../benchmarks/results/{record})", "results.md") == f"[a](benchmarks/results/{record})"
    assert site_links("[a](../../docs/results.md#b)", f"benchmarks/results/{record}") == "[a](../../results.md#b)"
    assert site_links("[the kernels](../native)", "api.md") == "the kernels (`native`)"
    assert site_links("[native/](../native)", "api.md") == "native/"


def test_the_site_is_built_without_a_warning_and_needs_no_other_server(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("benchmarks/results/*/index.html"))) > 10
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)\b[^>]*\b(?:src|href)="([^"]*)"', page.read_text())
        assert loaded
        assert [url for url in loaded if re.match(r"(?:https?:)?//", url)] == []
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"(?:url\(['\"]?|@import ['\"])(?:https?:)?//", style.read_text()), style


def test_the_citation_names_this_version_and_the_paper():
    found = read("CITATION.cff")
    assert found["version"] == toolkit.__version__
    assert {"cff-version", "message", "title", "authors", "license"} <= found.keys()
    (paper,) = found["references"]
    assert "2111.05754" in paper["url"]
    assert len(paper["authors"]) == 5


def test_the_issue_forms_are_complete():
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert [form.stem for form in forms] == ["bug", "config", "feature"]
    for form in (read(form.relative_to(ROOT)) for form in forms if form.stem != "config"):
        assert form["name"]
        assert form["description"]
        assert [field["type"] for field in form["body"]] == ["textarea"] * len(form["body"])
        assert all(field["attributes"]["label"] for field in form["body"])
        assert len({field["id"] for field in form["body"]}) == len(form["body"])


def test_pre_commit_runs_the_programs_of_make_lint():
    hooks = [hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    lint = (ROOT / "Makefile").read_text().split("lint: install\n")[1].split("\n\n")[0]
    run = [re.sub(r" (--check )?\.$", "", line.strip().removeprefix("$(BIN)/")) for line in lint.splitlines()]
    assert [hook["entry"].replace(" --force-exclude", "") for hook in hooks] == run
    assert all(hook["language"] == "system" for hook in hooks)
