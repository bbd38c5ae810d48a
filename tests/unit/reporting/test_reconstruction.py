"""A reconstructed student in the report."""

from tests.helpers.manifests import run_manifests
from tests.helpers.page import Page
from toolkit import reporting
from toolkit.measure.manifest_schema import require_recorded


def test_a_reconstructed_student_shows_the_errors_of_its_layers_and_matrices(tmp_path):
    errors = {"bert.encoder.layer.5": {"before": 0.877, "after": 0.25}}
    found = {"method": "admm", "error_correction": True, "sequences": 512, "tokens": 65_536, "seconds": 71.0}
    found |= {"layers": errors, "matrices": {"bert.encoder.layer.5.output.dense.weight": {"before": 0.9, "after": 0.1}}}
    manifests = run_manifests()
    student = next(m for m in manifests if m.stage == "student")
    metrics = student.metrics | {"steps": 0, "reconstruction": found}
    changed = [m.model_copy(update={"metrics": metrics, "history": ()}) if m is student else m for m in manifests]
    for m in changed:
        require_recorded(m, tmp_path, m.stage, m.task, complete=True)
    page = reporting.build([changed], tmp_path).read_text()
    sentence = "with error correction, from 512 sequences (65,536 tokens)"
    assert sentence in Page(page).shown
    assert "0.250; with as many zeros chosen by magnitude and no weight changed, 0.877" in Page(page).shown
    assert "<code>bert.encoder.layer.5.output.dense.weight</code>" in page
    text = (tmp_path / "report.md").read_text()
    assert sentence in text
    assert "| bert.encoder.layer.5 | 0.8770 | 0.2500 |" in text
