"""The manifest beside an exported IR: what its figures rest on, without the absolute paths of the machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.core.artifacts import Manifest
from toolkit.core.files import PAPERS, file_hash
from toolkit.recipe import VARIANTS
from toolkit.reporting.manifests import stage_of
from toolkit.reporting.portable import without_paths

_FORMAT = 1
_MADE_BY = ("export", "benchmark")  # their manifests have all variants


def rests_on(run: Sequence[Manifest], export: Manifest, variant: str) -> list[Manifest]:
    """Returns the manifests that a variant rests on: of the stages that it was made from, the export, the benchmark.

    A run folder may have others, such as a stage that was run again after the export.
    """
    ancestors = _ancestors(run, export, variant)
    makers = [m for m in run if m.stage not in _MADE_BY and m.artifact.sha256 in ancestors]
    benchmark = benchmark_of(run, export, variant)
    return [*makers, export, *([benchmark] if benchmark else [])]


def audit_of(rest: Sequence[Manifest], export: Manifest, variant: str, folder: Path, known: Any = ()) -> dict[str, Any]:
    """Returns what is needed to audit a variant: hashes of its files, and the manifests that it rests on.

    Those of `export` and `benchmark` have this variant alone. Training curves are left out, and the complete recipe
    of the run, which has other tasks, too; the card has the task's.

    Args:
        rest: The manifests that the variant rests on.
        export: That of the export.
        variant: Name of the variant.
        folder: Its IR folder.
        known: Values such as the recipe, whose paths may occur in the manifests' texts.
    """
    found = {"format": _FORMAT, "task": export.task, "variant": variant, "files": file_facts(folder)}
    stages = [_of_variant(m, variant) if m.stage in _MADE_BY else _public(m) for m in rest]
    shortened: dict[str, Any] = without_paths(found | {"stages": stages}, known)
    return shortened


def file_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns name -> size and hash of the files of an IR folder, its card and manifest left out."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".") and p.name not in PAPERS)
    return {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": file_hash(p)} for p in files}


def benchmark_of(run: Sequence[Manifest], export: Manifest, variant: str) -> Manifest | None:
    """Returns the manifest of the benchmark that measured a variant of this very export; None: not measured yet."""
    found = stage_of(run, "benchmark", export.task)
    measured = found is not None and found.inputs.get("export") == export.artifact.sha256
    return found if found is not None and measured and variant in found.metrics["variants"] else None


def made_from(export: Manifest, variant: str) -> str:
    """Returns the stage whose checkpoint a variant was exported from; older exports have none of dense students."""
    stage: str = export.metrics["variants"][variant].get("made_from") or VARIANTS[variant].source_stage
    return stage


def _ancestors(run: Sequence[Manifest], export: Manifest, variant: str) -> set[str]:
    """Returns the hashes of all artifacts that a variant was made from, teachers included."""
    made = {m.artifact.sha256: m for m in run}
    found: set[str] = set()
    todo = [digest for name, digest in export.inputs.items() if name == made_from(export, variant)]
    while todo:
        digest = todo.pop()
        if digest not in found:
            found.add(digest)
            todo += made[digest].inputs.values() if digest in made else ()
    return found


def _public(manifest: Manifest) -> dict[str, Any]:
    return manifest.model_dump(mode="json", exclude={"history": True, "run": {"recipe"}})


def _of_variant(manifest: Manifest, variant: str) -> dict[str, Any]:
    """Returns a manifest with the figures and checks of one variant."""
    others = tuple(f"{name}: " for name in VARIANTS if name != variant)
    found = _public(manifest)
    metrics = found["metrics"]
    for key in ("variants", "by_type"):
        if key in metrics:
            metrics[key] = {name: figures for name, figures in metrics[key].items() if name == variant}
    found["checks"] = [check for check in found["checks"] if not check["name"].startswith(others)]
    return found
