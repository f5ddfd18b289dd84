"""Links between files of the repository lead somewhere; anchors are what `make docs` looks at."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT

_LINK = re.compile(r"\]\((?P<path>[^)\s#:]+)(?:#[^)\s]*)?\)")
_CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]*`", re.S | re.M)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
# Of text in code, such as a path in a message or a comment.
NAMED = re.compile(r"\bdocs/[\w/-]+\.md\b")


def broken(page: Path, text: str) -> list[str]:
    links = [found["path"] for found in _LINK.finditer(_CODE.sub("", text))]
    return [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert not broken(page, page.read_text(encoding="utf-8"))


def test_a_link_that_leads_nowhere_is_found() -> None:
    text = "[a](docs/none.md#x) [b](README.md) [c](https://none) `[d](e)`"
    assert broken(ROOT / "README.md", text) == ["docs/none.md"]


def test_pages_that_code_names_are_there() -> None:
    sources = [*ROOT.glob("*.*"), *(each for folder in FOLDERS for each in (ROOT / folder).rglob("*.*"))]
    named = {
        name
        for each in sources
        if each.suffix in {".py", ".md", ".toml", ".yml"}
        and each.parent != Path(__file__).parent
        and "node_modules" not in each.parts
        for name in NAMED.findall(each.read_text(encoding="utf-8"))
    }
    assert named
    assert not [name for name in sorted(named) if not (ROOT / name).is_file()]


FOLDERS = ("rewriter", "passes", "tests", "benchmarks", "examples", "docs", "website")
