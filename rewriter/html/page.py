"""The page: what is written into it, and how."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template

from rewriter.html.samples import Shown

# In JSON, whatever ends or begins a tag, and what JavaScript of old took for the end of a line.
_ESCAPED = str.maketrans(
    {"<": r"\u003c", ">": r"\u003e", "&": r"\u0026", "\u2028": r"\u2028", "\u2029": r"\u2029"}
)


def page_of(shown: Shown, samples: Sequence[str], title: str, summary: str, size: str) -> str:
    """Return the page as text.

    Args:
        shown: what is shown.
        samples: those that are written, as JSON.
        title: of the page.
        summary: what it is of.
        size: what is said of its size.

    """
    template, script, style = (
        files("rewriter.html").joinpath(name).read_text(encoding="utf-8")
        for name in ("page.html", "page.js", "page.css")
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(what)}</th><td>{escape(found)}</td></tr>\n'
        for what, found in shown.proof
    )
    return Template(template).substitute(
        title=escape(title),
        summary=escape(summary),
        size=escape(size),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        proof=rows,
        data=_data(shown, samples),
    )


def _data(shown: Shown, samples: Sequence[str]) -> str:
    several = len(shown.grids) > 1
    inputs = [
        {
            "name": f"input {k}" if several else "input",
            "features": grid.features,
            "rows": [] if grid.rows and isinstance(grid.rows[0], list) else grid.rows,
        }
        for k, grid in enumerate(shown.grids)
    ]
    head = {"outputs": shown.outputs, "first": int(shown.prediction[0].argmax()), "inputs": inputs}
    text = json.dumps(head, ensure_ascii=False)[:-1] + f', "samples": [{",".join(samples)}]}}'
    return text.translate(_ESCAPED)


def _hash(text: str) -> str:
    """Return what the policy of the page names a script by: no other one runs."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
