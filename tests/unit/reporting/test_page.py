"""The page for everyone: structure, contrast in both colour schemes, size, and nothing of the machine that made it."""

import itertools
import re

import pytest

from tests.helpers.manifests import KINDS, LAYERS, MATRICES, curve, run_manifests
from tests.helpers.page import Page
from toolkit import reporting
from toolkit.recipe import VARIANTS
from toolkit.reporting import figures
from toolkit.reporting.formatting import portable
from toolkit.reporting.svg import Axis, axis, short


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return reporting.build([run_manifests(("films", "sst2"))], tmp_path_factory.mktemp("page")).read_text()


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_a_page_is_small(html):
    assert len(html.encode()) < 200_000, "of two tasks; that of the quickstart may have 400 kB"


def test_headings_are_in_order_and_there_is_one_first(page):
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_cell_has_its_headings_and_every_wide_table_can_be_scrolled_with_keys(page):
    heads = [attributes for tag, attributes in page.elements if tag == "th"]
    assert heads
    assert {attributes.get("scope") for attributes in heads} == {"col", "row"}
    tables = sum(tag == "table" for tag, _ in page.elements)
    regions = [a for _, a in page.elements if a.get("role") == "region"]
    assert len(regions) == tables
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in regions)


def test_every_plot_has_a_title_and_its_figures_as_text(page, html):
    plots = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(plots) == 2 * 2 + 8
    for attributes in plots:
        assert attributes["role"] == "img"
        assert set(attributes["aria-labelledby"].split()) <= set(page.identifiers)
    text = html.replace("\u202f", " ")
    assert "dense-fp32: 82.2 %, 11.4 ms; dense-int8: 81.9 %, 6.31 ms" in text
    assert "loss from " in text


def test_links_lead_to_places_in_the_page_and_checks_are_folded(page):
    links = [str(a["href"])[1:] for tag, a in page.elements if tag == "a"]
    assert len(links) >= 4
    assert set(links) <= set(page.identifiers)
    assert not any("open" in a for tag, a in page.elements if tag == "details")


def test_failed_checks_are_unfolded(tmp_path):
    run = run_manifests()
    broken = run[1].checks[0].model_copy(update={"ok": False})
    run[1] = run[1].model_copy(update={"checks": (broken,)})
    page = Page(reporting.build([run], tmp_path).read_text())
    assert sum("open" in a for tag, a in page.elements if tag == "details") == 1


def test_no_path_of_the_machine_is_in_the_page_or_the_markdown(tmp_path):
    home = "/home/somebody/secret"
    run = run_manifests()
    for number, m in enumerate(run):
        metrics = m.metrics
        if m.stage == "benchmark":
            for v in metrics["variants"].values():
                for timed in v["performance"]:
                    timed["command"] = f"benchmark_app -extensions {home}/kernels/lib.so -m ../export/x.xml"
            metrics |= {"note": "see https://example.org/a/b/c"}
        if m.stage == "export":
            metrics |= {"left_out": {"sparse-engine-fp32": f"{home}/c++: not found"}}
        checks = tuple(c.model_copy(update={"measured": f"{home}/x.bin differs"}) for c in m.checks)
        changes = {
            "run": {"name": "r", "description": "d", "model": f"{home}/model"},
            "data": {f"{home}/train.tsv": {"sha256": "ab", "file": f"{home}/train.tsv"}},
        }
        run[number] = m.model_copy(update=changes | {"checks": checks, "metrics": metrics})
    page = reporting.build([run], tmp_path).read_text()
    for text in (page, (tmp_path / "report.md").read_text()):
        assert "secret" not in text
        assert "…/model" in text
        assert "-extensions $(pruneofa kernels path) -m ../export/x.xml" in text
        assert "https://example.org/a/b/c" in text


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("/a/b/c.txt: no such file", "…/c.txt: no such file"),
        ("see ~/models/x and C:\\Users\\me\\y", "see …/x and …/y"),
        ("../export/a/b, data/train.tsv, https://x.org/a/b, 3 tokens/s, a|b/c", None),
        ("/single", None),
    ],
)
def test_only_absolute_paths_are_shortened(written, shown):
    assert portable(written) == (shown or written)


# --- contrast, as WCAG 2.1 defines it ---


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def schemes(html: str) -> list[dict[str, str]]:
    """The colours of the light and of the dark page, by name."""
    roots = re.findall(r":root \{([^}]*)\}", html)
    assert len(roots) == 2
    assert re.search(r"@media \(prefers-color-scheme: dark\) \{\s*:root", html)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", root)) for root in roots]


# Colours of texts and the backgrounds that they are on.
ON = {
    "ink": ("back", "card", "chosen", "code"),
    "soft": ("back", "card"),
    "accent": ("back", "card"),
    "good": ("back", "card", "chosen"),
    "bad": ("back", "card", "chosen"),
}


def test_texts_have_the_contrast_that_aa_requires(html):
    for scheme in schemes(html):
        for text, backgrounds in ON.items():
            for background in backgrounds:
                assert contrast(scheme[text], scheme[background]) >= 4.5, (text, background)


def test_plots_have_the_contrast_that_aa_requires(html):
    for number, scheme in enumerate(schemes(html)):
        for name, *colours in figures.COLOURS:
            assert contrast(colours[number], scheme["card"]) >= 3, name
            assert f".c-{name} {{ --c: {colours[number]}; }}" in html
    assert {name for name, *_ in figures.COLOURS} >= VARIANTS.keys()


def test_figures_of_the_sparsity_table_can_be_read_on_the_darkest_cell(html):
    tints = re.findall(r"--heat: (\d+), (\d+), (\d+);", html)
    for scheme, tint in zip(schemes(html), tints, strict=True):
        card = [int(scheme["card"][i : i + 2], 16) for i in (1, 3, 5)]
        darkest = "#" + "".join(f"{round(0.7 * c + 0.3 * int(t)):02x}" for c, t in zip(card, tint, strict=True))
        assert contrast(scheme["ink"], darkest) >= 4.5


# --- plots ---


@pytest.mark.parametrize(
    "ends", [(0.0, 7.6), (79.1, 83.0), (0.3, 0.9), (1e-5, 3e-5), (0.49, 0.51), (-0.2, 0.7), (5, 5)]
)
def test_an_axis_has_some_round_values_within_its_ends(ends):
    found = axis(ends, 0, 100)
    assert 2 <= len(found.ticks()) <= 8
    assert all(found.low <= tick <= found.high + 1e-9 for tick in found.ticks())
    assert (found(found.low), found(found.high)) == (0, 100)
    assert len(Axis(*found.__dict__.values()).ticks(3)) >= 2


@pytest.mark.parametrize(
    ("value", "written"), [(0, "0"), (80.0, "80"), (0.25, "0.25"), (5e-4, "5e-4"), (1.5e-5, "1.5e-5")]
)
def test_values_of_an_axis_are_short(value, written):
    assert short(value) == written


def test_long_curves_are_thinned_out_and_keep_their_end():
    history = [{"step": float(n), "loss": 1 / (n + 1), "learning_rate": 1e-4} for n in range(5000)]
    plot = figures.training_curve(history, "teacher", "x")
    assert len(plot) < 12_000
    assert "loss from 1 to 2e-4" in plot


def test_sparsity_table_has_a_row_for_each_kind_of_matrix_and_a_column_for_each_layer():
    heat = figures.sparsity({name: 0.9 for name, _ in MATRICES})
    assert heat.layers == tuple(str(i) for i in range(LAYERS))
    assert list(heat.rows) == list(KINDS)
    assert set().union(*heat.rows.values()) == {0.9}


def test_training_curve_shows_sparsity_only_where_it_changes():
    locked = [row | {"sparsity": 0.9} for row in curve(100)]
    assert list(figures.panels(curve(100, pruned=True))) == ["loss", "learning rate", "sparsity, %"]
    assert list(figures.panels(locked)) == ["loss", "learning rate"]
    assert "sparsity from 0" in figures.training_curve(curve(100, pruned=True), "student", "run-curve-0")
