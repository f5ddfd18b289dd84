"""Every public name has its place on the pages of the API."""

from __future__ import annotations

import re

import rewriter
import rewriter.keras
import rewriter.plot
import rewriter.ray
from tests.docs.pages import DOCS

_DIRECTIVE = re.compile(r"^::: ([\w.]+)$", re.M)
# Rooms are listed by what is in them.
ROOMS = {"plot": rewriter.plot, "ray": rewriter.ray, "keras": rewriter.keras}
SHOWN = [
    name
    for page in sorted((DOCS / "reference/api").glob("*.md"))
    for name in _DIRECTIVE.findall(page.read_text())
]


def missing(shown: list[str]) -> set[str]:
    public = {f"rewriter.{name}" for name in rewriter.__all__ if name not in ROOMS}
    public |= {f"rewriter.{room}.{name}" for room, module in ROOMS.items() for name in module.__all__}
    return public - set(shown)


def test_every_public_name_is_shown_once() -> None:
    assert not missing(SHOWN)
    assert len(SHOWN) == len(set(SHOWN))


def test_a_name_that_is_left_out_is_missed() -> None:
    assert missing([name for name in SHOWN if name != "rewriter.verify"]) == {"rewriter.verify"}
    assert missing([name for name in SHOWN if name != "rewriter.plot.gates"]) == {"rewriter.plot.gates"}
