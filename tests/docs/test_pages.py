"""The code of the documentation runs, and prints what the pages say."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.docs.pages import DOCS, ROOT, Block, blocks_of, run

# What the code covers other tests do, too, and the tracer would take as long again.
pytestmark = pytest.mark.unmeasured
PAGES = {
    page.relative_to(ROOT).as_posix(): blocks_of(page.read_text(encoding="utf-8"))
    for page in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
}


@pytest.mark.parametrize(
    "page", [page for page, found in PAGES.items() if any(not each.reason for each in found)]
)
@pytest.mark.filterwarnings(
    "ignore"
)  # what stock libraries say of models that they do not know is the subject
def test_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    # What looks its classes up by their module finds them there: source lines, pickles.
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    names: dict[str, Any] = module.__dict__
    for block in PAGES[page]:
        if block.reason is None:
            run(block, names, page)


def test_whoever_is_not_run_says_why() -> None:
    assert all(each.reason is None or len(each.reason) > 10 for found in PAGES.values() for each in found)


class TestTheRunner:
    """It fails where code throws, prints another thing, or a session has another result."""

    def test_blocks(self) -> None:
        text = "a\n```python\nx = 1\nprint(x)\n```\n\n```text\n1\n```\n"
        text += "<!-- not run: no network -->\n```python\ny\n```\n"
        assert blocks_of(text) == [
            Block(3, "x = 1\nprint(x)\n", "1\n", None),
            Block(12, "y\n", None, "no network"),
        ]

    @pytest.mark.parametrize(
        ("block", "error"),
        [
            (Block(3, "print(1)\n", "2\n", None), AssertionError),
            (Block(3, ">>> 1 + 1\n3\n", None, None), AssertionError),
            (Block(3, "1 / 0\n", None, None), ZeroDivisionError),
        ],
    )
    def test_fails(self, block: Block, error: type[Exception]) -> None:
        with pytest.raises(error):
            run(block, {}, "page.md")

    def test_one_namespace(self) -> None:
        names: dict[str, Any] = {}
        run(Block(1, "x = 1\n", None, None), names, "page.md")
        run(Block(1, ">>> x + 1\n2\n>>> y = 3\n", None, None), names, "page.md")
        run(Block(1, "print(x + y)\n", "4\n", None), names, "page.md")
