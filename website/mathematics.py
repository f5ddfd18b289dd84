"""A hook of MkDocs: formulas in TeX become MathML while the site is built, so that no page needs a script."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

# As pymdownx.arithmatex leaves them with ``generic: true``.
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<kind>[(\[])(?P<tex>.*?)\\[)\]]</(?P=tag)>', re.S
)


def mathml(tex: str, *, block: bool) -> str:
    """Return a formula as MathML that keeps its TeX beside it, for whoever copies or reads it aloud."""
    made: str = convert(tex, display="block" if block else "inline")
    return made.replace("<math ", f'<math title="{html.escape(tex)}" ', 1)


def on_page_content(content: str, *, page: Any, **_: Any) -> str:
    """Replace each formula of a page."""

    def replaced(found: re.Match[str]) -> str:
        tex = html.unescape(found["tex"]).strip()
        try:
            return mathml(tex, block=found["kind"] == "[")
        except Exception as error:
            raise PluginError(f"{page.file.src_uri}: no MathML of {tex!r}: {error}") from error

    return _FORMULA.sub(replaced, content)
