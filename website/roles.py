"""An extension of Griffe that reads our docstrings: roles of Sphinx, and sections with one example."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc):`~?(?P<name>[\w.]+)`")
_DIRECTIVE = re.compile(r"^::: ([\w.]+)$", re.M)
_PAGES = Path(__file__).parent.parent / "docs/reference/api"


def shown() -> set[str]:
    """Return the names that have a place on the pages of the API."""
    return {name for page in _PAGES.glob("*.md") for name in _DIRECTIVE.findall(page.read_text("utf-8"))}


class Roles(griffe.Extension):
    """Roles are written so that an editor finds what they name; a page has a link in their place."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = shown()

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = _ROLE.sub(self._linked, obj.docstring.value)
            # One example is a section, too, and what follows a double colon is code in both languages.
            text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.M)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.M)

    def _linked(self, found: re.Match[str]) -> str:
        name = found["name"]
        known = name in self._shown or name.rpartition(".")[0] in self._shown
        return f"[`{name}`][{name}]" if known else f"`{name}`"
