"""What `make docs` does besides MkDocs: figures show the committed results, formulas and links are right.

Runs in `make docs`, which installs MkDocs; `make test` runs it where that is done.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

figures = pytest.importorskip("website.figures", reason="`make docs` installs what the site is built with")
mathematics = pytest.importorskip(
    "website.mathematics", reason="`make docs` installs what the site is built with"
)
repository_files = pytest.importorskip("website.repository_files", reason="`make docs` installs MkDocs")
notebook_pages = pytest.importorskip("website.notebook_pages", reason="`make docs` installs MkDocs")
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


class Place:
    """A file of the site, as MkDocs has it."""

    def __init__(self, src_uri: str) -> None:
        self.src_uri = src_uri

    def url_relative_to(self, other: Place) -> str:
        return f"<from {other.src_uri} to {self.src_uri}>"

    def get_file_from_path(self, path: str) -> Place | None:
        """Take the part of the collection, too: all but one file are there."""
        return None if path == "missing.md" else Place(path)


def of_a_notebook(text: str) -> str:
    page = type("Page", (), {"file": Place("notebooks/a.ipynb")})
    content = (
        f'<script src=""> </script><div data-mime-type="text/markdown">{text}</div><script>cdnjs</script>'
    )
    made: str = notebook_pages.on_page_content(content, page=page, files=Place(""))
    return made.removeprefix('<div data-mime-type="text/markdown">').removesuffix("</div>")


def test_pages_of_notebooks() -> None:
    assert of_a_notebook("5 $ and 6 $, <code>$HOME$</code>") == "5 $ and 6 $, <code>$HOME$</code>"
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in of_a_notebook("<p>$x^2$</p>")
    linked = of_a_notebook('<a href="../../docs/guides/onnx.md#a">a</a> <a href="https://b.c">b</a>')
    assert (
        linked == '<a href="<from notebooks/a.ipynb to guides/onnx.md>#a">a</a> <a href="https://b.c">b</a>'
    )
    assert "to repository/examples/demo.py.md>" in of_a_notebook('<a href="../demo.py">d</a>')
    with pytest.raises(Exception, match=r"docs/missing\.md' leads nowhere"):
        of_a_notebook('<a href="../../docs/missing.md">m</a>')
