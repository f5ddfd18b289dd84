"""Models of few features, each of which takes part in one term: their Shapley values are known."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from passes.errors import RewriteError
from rewriter import DeepExplainer
from tests.fuzz.forms import elementwise
from tests.fuzz.forms.form import Form, written
from tests.fuzz.judging import HELD, Violation, judged
from tests.fuzz.programs import Drawn
from tests.support.oracles.shapley import shapley_of_subsets

_COLUMNS = 3
_TOP = """\
import torch
from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def forward(self, x):
        a, b, c = x.unbind(-1)
"""
# Of one sequence of numbers per feature.
_SHAPE = (2, 3)


@st.composite
def few_features(draw: st.DrawFn) -> Drawn:
    """Draw a sum of terms: of one feature each, or of two, of which neither is in another term."""
    names: list[str] = []
    lines: list[str] = []

    def line(form: Form, a: str, b: str) -> str:
        new = f"h{len(lines)}"
        drawn = written(draw, form.text, {"a": a, "b": b, "c": b, "new": new}, _SHAPE)
        lines.append(f"        {new} = {drawn}")
        names.append(form.name)
        return new

    ones = st.sampled_from(elementwise.OF_ONE)
    terms = [
        line(draw(ones), each, each) if draw(st.booleans()) else each for each in draw(st.permutations("abc"))
    ]
    if draw(st.booleans()):
        terms[:2] = [line(draw(st.sampled_from(_PAIRS)), *terms[:2])]
    terms = terms[: draw(st.integers(1, len(terms)))]
    total = " + ".join(f"{draw(st.sampled_from([1.0, -2.0, 0.5]))} * {term}" for term in terms)
    zero = draw(st.sampled_from(["", " * 0 + 0.0"]))
    data = draw(st.sampled_from(["", ".round() + 0.0", " * 3"]))
    lines += [
        f"        return torch.stack([{total}, {terms[0]}], -1)\n\n",
        f"torch.manual_seed({draw(st.integers(0, 99))})",
        "model = Model()",
        f"x = torch.randn(3, {_COLUMNS}, dtype=torch.float64){data}",
        f"background = torch.randn(1, {_COLUMNS}, dtype=torch.float64){zero}",
    ]
    return Drawn(_TOP + "\n".join(lines) + "\n", tuple(names))


# Each feature is one operand: those that mix both twice share them in another way.
_PAIRS = [
    each
    for each in elementwise.OF_TWO
    if not re.search(r"\{d\}|sigmoid|exp\(\) \+", each.text)
    and all(each.text.count(operand) <= 1 for operand in ("{a}", "{b}"))
    and "full_like" not in each.text
]


def values_are_shapleys(example: Drawn) -> str:
    """Judge attributions by brute force over all subsets, and exact zeros for what is not read."""
    space = example.build()

    with torch.no_grad():
        rows = space.model(torch.cat([space.x, space.background]))
        if not bool((rows.abs() < 1e6).all()):
            return "not finite"
        expected = _shapley(space)
    try:
        with judged("DeepExplainer"):
            got = DeepExplainer(space.model, space.background, progress=False).shap_values(space.x)
    except RewriteError as error:
        raise Violation("what is promised is refused", str(error)) from error
    # Differences of numbers of the size of the outputs.
    if np.abs(got - expected).max() > 1e-9 * max(1.0, float(rows.abs().max())):
        raise Violation("a value is not the Shapley value", f"{got.tolist()}, {expected.tolist()}")
    code = example.text.partition("unbind(-1)\n")[2].partition("torch.manual_seed")[0]
    used = set(re.findall(r"\b[abc]\b", re.sub(r"\.\w+|\w+=", "", code)))
    for k, name in enumerate("abc"):
        if name not in used and np.any(got[:, k] != 0):
            raise Violation("a feature that the model ignores gets attributions")
    return HELD


def _shapley(space: Any) -> Any:
    """Return the values by brute force, (samples, features, outputs)."""

    def of(x: torch.Tensor, output: int) -> torch.Tensor:
        return shapley_of_subsets(lambda row: space.model(row[None])[0, output], x, space.background[0])

    return torch.stack([torch.stack([of(x, k) for k in range(2)], -1) for x in space.x]).numpy()
