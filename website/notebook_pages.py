"""A hook of MkDocs: pages of notebooks ask no other host for anything; their links and formulas are ours."""

from __future__ import annotations

import html
import posixpath
import re
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files

from website.mathematics import mathml
from website.repository_files import outside, place_of

# What sets formulas and diagrams would be fetched.
_SCRIPT = re.compile(
    r"<script\b(?:(?!</script>).)*?(?:mathjax|cdnjs)(?:(?!</script>).)*</script>"
    r'|<script src="">\s*</script>',
    re.S | re.I,
)
_TEXT = re.compile(r'(?<=data-mime-type="text/markdown">)(?P<text>.*?)(?=</div>)', re.S)
_FORMULA = re.compile(r"(?<![\\$])(?P<mark>\$\$?)(?P<tex>[^$<\s](?:[^$<]*[^$<\s])?)(?P=mark)(?!\d)")
_CODE = re.compile(r"(<code\b.*?</code>|<pre\b.*?</pre>)", re.S)
_LINK = re.compile(r'(?<=href=")(?P<path>[^":#]+)(?P<anchor>#[^"]*)?(?=")')


def _with_formulas(text: str) -> str:
    def set_(found: re.Match[str]) -> str:
        block = found["mark"] == "$$"
        made = mathml(html.unescape(found["tex"]), block=block)
        return f'<div class="formula">{made}</div>' if block else made

    # Every second part is code.
    parts = enumerate(_CODE.split(text))
    return "".join(part if number % 2 else _FORMULA.sub(set_, part) for number, part in parts)


def on_page_content(content: str, *, page: Any, files: Files, **_: Any) -> str:
    """Mend the page of a notebook."""
    source = page.file.src_uri
    if not source.endswith(".ipynb"):
        return content

    def moved(found: re.Match[str]) -> str:
        path = outside(source, found["path"])
        # Only what is under ``docs`` is left out.
        inside = posixpath.normpath(posixpath.join("examples/notebooks", found["path"])).removeprefix("docs/")
        there = files.get_file_from_path(inside if path is None else place_of(path))
        if there is None:
            raise PluginError(f"{source}: the link {found['path']!r} leads nowhere")
        address: str = there.url_relative_to(page.file)
        return address + (found["anchor"] or "")

    def mended(found: re.Match[str]) -> str:
        return _LINK.sub(moved, _with_formulas(found["text"]))

    return _TEXT.sub(mended, _SCRIPT.sub("", content))
