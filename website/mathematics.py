"""A hook of MkDocs: formulas in TeX become MathML while the site is built, so that no page needs a script."""

from __future__ import annotations

import html
import io
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
from fontTools.ttLib import TTFont
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

# As pymdownx.arithmatex leaves them with ``generic: true``.
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<kind>[(\[])(?P<tex>.*?)\\[)\]]</(?P=tag)>', re.S
)


_BAR = re.compile(r"<mover>(?P<under>(?:(?!</?mover>).)*?)<mo [^>]*>&#x0(?:00AF|2015);</mo></mover>")
# Letters that follow a function without a bracket would stick to it.
_FUNCTION = re.compile(r"<mi>(?:tanh|log|exp)</mi>(?=<m(?:i|sub|row))")
_AFTER = re.compile(r"(?<=</mi>)(?=<mi>(?:tanh|log|exp)</mi>)")
# What browsers that have no font of their own for formulas set them with.
FONT = "assets/formulas.ttf"
# How far scripts, fractions and limits are shifted, in thousandths of an em, about as in Computer Modern: the
# font that matplotlib ships has 0 for most of them.
_SHIFTS = {
    "SubscriptShiftDown": 200,
    "SubscriptTopMax": 400,
    "SubscriptBaselineDropMin": 100,
    "SuperscriptShiftUp": 360,
    "SuperscriptShiftUpCramped": 290,
    "SuperscriptBottomMin": 125,
    "SuperscriptBaselineDropMax": 250,
    "FractionNumeratorShiftUp": 390,
    "FractionNumeratorDisplayStyleShiftUp": 680,
    "FractionDenominatorShiftDown": 350,
    "FractionDenominatorDisplayStyleShiftDown": 690,
    "LowerLimitGapMin": 170,
    "LowerLimitBaselineDropMin": 600,
    "UpperLimitGapMin": 110,
    "UpperLimitBaselineRiseMin": 110,
}


def font() -> bytes:
    """Return a font that has what browsers ask of one for formulas."""
    made = TTFont(Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSerif.ttf")
    constants, em = made["MATH"].table.MathConstants, made["head"].unitsPerEm
    for name, shift in _SHIFTS.items():
        getattr(constants, name).Value = shift * em // 1000
    constants.ScriptPercentScaleDown, constants.ScriptScriptPercentScaleDown = 70, 55
    written = io.BytesIO()
    made.save(written)
    return written.getvalue()


def on_files(files: Files, *, config: Any) -> Files:
    """Bring the font along."""
    files.append(File.generated(config, FONT, content=font()))
    return files


def mathml(tex: str, *, block: bool) -> str:
    """Return a formula as MathML that keeps its TeX beside it, for whoever copies or reads it aloud."""
    made: str = convert(tex, display="block" if block else "inline")
    # A line over a mean: stretched accents look otherwise in each font.
    made = _BAR.sub(r'<mrow class="mean">\g<under></mrow>', made)
    made = _AFTER.sub('<mspace width="0.17em" />', made)
    made = _FUNCTION.sub(r'\g<0><mspace width="0.17em" />', made)
    return made.replace("<math ", f'<math title="{html.escape(tex)}" ', 1)


def on_page_content(content: str, *, page: Any, **_: Any) -> str:
    """Replace each formula of a page."""

    def replaced(found: re.Match[str]) -> str:
        tex = html.unescape(found["tex"]).strip()
        try:
            if found["kind"] == "(":
                return mathml(tex, block=False)
            # What is wider than a phone scrolls by itself.
            return f'<div class="formula">{mathml(tex, block=True)}</div>'
        except Exception as error:
            raise PluginError(f"{page.file.src_uri}: no MathML of {tex!r}: {error}") from error

    return _FORMULA.sub(replaced, content)
