"""What `make docs` does besides MkDocs: figures show the committed results, formulas and links are right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

figures = pytest.importorskip("website.figures", reason="`make docs` installs what the site is built with")
mathematics = pytest.importorskip(
    "website.mathematics", reason="`make docs` installs what the site is built with"
)
repository_files = pytest.importorskip("website.repository_files", reason="`make docs` installs MkDocs")
RESULTS = Path(figures.RESULTS)
pytestmark = pytest.mark.unmeasured


@pytest.mark.parametrize("name", figures.FIGURES)
def test_figures_are_drawn_of_their_own(name: str) -> None:
    drawn = figures.svg(name)
    assert drawn.startswith("<svg")
    assert "</svg>" in drawn
    assert "#000000" not in drawn
    assert "<metadata>" not in drawn


def test_bars_are_as_high_as_the_committed_run_says() -> None:
    found = figures.forward()
    rows = json.loads((RESULTS / "forward.json").read_text())["results"]
    heights = {round(patch.get_height(), 6) for patch in found.axes[0].patches}
    wanted = {
        round(row[kind], 6)
        for row in rows
        if row["case"].endswith("B=64 T=100 I=64 H=128")
        for kind in ("rolled", "flat", "torch.export", "torch.ao")
        if kind in row
    }
    assert len(wanted) > 10
    assert heights == wanted


def test_points_are_where_the_committed_run_says() -> None:
    lines = {line.get_label(): line for line in figures.additivity().axes[0].lines}
    rows = json.loads((RESULTS / "additivity.json").read_text())["results"]
    assert max(lines["as it is"].get_xdata()) == max(row["as it is"] for row in rows)
    assert max(lines["decomposed, float64"].get_xdata()) == max(row["decomposed, float64"] for row in rows)


def test_a_page_that_asks_for_an_unknown_figure_ends_the_build() -> None:
    class Page:
        class file:
            src_uri = "page.md"

    with pytest.raises(Exception, match="no figure 'nothing'"):
        figures.on_page_content("<!-- figure: nothing -->", page=Page)


def test_formulas_become_mathml() -> None:
    content = r'<p><span class="arithmatex">\(\bar x &lt; 1\)</span></p>'
    made = mathematics.on_page_content(content, page=None)
    assert 'class="mean"><mi>x</mi>' in made
    assert 'title="\\bar x &lt; 1"' in made
    assert "arithmatex" not in made


def test_links_out_of_the_docs() -> None:
    outside = repository_files.outside
    assert (
        outside("concepts/truth.md", "../../benchmarks/results/truth.txt") == "benchmarks/results/truth.txt"
    )
    assert outside("concepts/truth.md", "../guides/onnx.md") is None
    assert repository_files.place_of("examples/demo.py") == "repository/examples/demo.py.md"
    assert repository_files.place_of("a/b.png") == "repository/a/b.png"
    moved = repository_files.from_root(
        "[a](docs/guides/onnx.md#x) [b](https://c.d) [e](LICENSE)", "about/changelog.md"
    )
    assert moved == "[a](../guides/onnx.md#x) [b](https://c.d) [e](../../LICENSE)"
