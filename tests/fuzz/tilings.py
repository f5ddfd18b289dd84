"""Explanations are the mean over pairs of sample and reference, however they are cut into tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from passes.errors import RewriteError
from rewriter import DeepExplainer
from tests.fuzz.judging import HELD, Violation, judged
from tests.fuzz.programs import Drawn

_MODELS = (
    "nn.Sequential(nn.Flatten(), nn.Linear({T} * {C}, 4), nn.Tanh(), nn.Linear(4, {K}))",
    "Last(nn.GRU({C}, 3, batch_first=True), nn.Linear(3, {K}))",
    "Last(nn.LSTM({C}, 3, 2, bidirectional=True, batch_first=True), nn.Linear(6, {K}))",
    "Last(nn.RNN({C}, 3, 2, batch_first=True), nn.Sequential(nn.Linear(3, {K}), nn.Softmax(-1)))",
    "Last(nn.LSTM({C}, 3, proj_size=2, batch_first=True), nn.Sequential(nn.LayerNorm(2), nn.Linear(2, {K})))",
    "Cells(nn.LSTMCell({C}, 3), nn.Linear(3, {K}))",
    "Decides(Last(nn.GRU({C}, 3, batch_first=True), nn.Linear(3, {K})))",
    "nn.Sequential(nn.TransformerEncoderLayer({C}, 1, 3, batch_first=True), nn.Flatten())",
    "nn.Sequential(nn.Conv1d({T}, {K}, 1), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten())",
)
_TOP = """\
import torch
from torch import nn


class Last(nn.Module):
    def __init__(self, rnn, head):
        super().__init__()
        self.rnn, self.head = rnn, head

    def forward(self, x):
        out = self.rnn(x)[0]
        return self.head(out[:, -1] * out[:, 0])


class Cells(nn.Module):
    def __init__(self, cell, head):
        super().__init__()
        self.cell, self.head = cell, head

    def forward(self, x):
        state = None
        for each in x.unbind(1):
            state = self.cell(each, state)
        return self.head(state[0])


class Decides(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if x.abs().max() < 1e6 else x


"""


@st.composite
def tilings(draw: st.DrawFn) -> Drawn:
    """Draw a model, numbers of rows, and memory to work in."""
    small = st.integers(1, 5)
    T, C, K = draw(small), draw(small), draw(st.integers(1, 4))
    M, N = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    memory = draw(st.sampled_from([None, 1, 1_000, 5_000, 20_000, 100_000, 10**9]))
    ranked = draw(st.sampled_from([None, None, 1, 2]))
    model = draw(st.sampled_from(_MODELS))
    own = draw(st.booleans())
    lines = [
        f"torch.manual_seed({draw(st.integers(0, 99))})",
        f"model = {model.format(T=T, C=C, K=K)}.double().eval()",
        f"x = torch.randn({M}, {T}, {C}, dtype=torch.float64)",
        f"background = torch.randn({N}, {T}, {C}, dtype=torch.float64)",
        f"references = torch.randn({M}, {N}, {T}, {C}, dtype=torch.float64)" if own else "references = None",
        f"options = dict(max_memory={memory}, compiled={draw(st.booleans())}, progress=False)",
        f"ranked = {ranked}",
    ]
    names = (model, *(["own references"] if own else []), *(["ranked"] if ranked else []))
    return Drawn(_TOP + "\n".join(lines) + "\n", names)


def tiling_does_not_matter(example: Drawn) -> str:
    """Judge an explanation by those of each sample with each reference, one pair a call."""
    space = example.build()
    try:
        with judged("DeepExplainer"):
            explainer = DeepExplainer(space.model, space.background, **space.options)
            got = explainer.shap_values(space.x, space.ranked, references=space.references)
        values, chosen = got if space.ranked else (got, None)
        pairs = _of_pairs(space)
    except RewriteError as error:
        raise Violation("what is promised is refused", str(error)) from error
    every = pairs
    if chosen is not None:
        pairs = np.stack([row[..., index] for row, index in zip(pairs, chosen.tolist(), strict=True)])
    if values.shape != pairs.shape:
        raise Violation("the explanation has another shape", f"{values.shape}, {pairs.shape}")
    # Tiles are summed in another order.
    if np.abs(values - pairs).max() > 1e-12 * max(1.0, np.abs(pairs).max()):
        raise Violation("tiles change the explanation", str(np.abs(values - pairs).max()))
    with torch.no_grad():
        f = space.model(space.x)
        f0 = torch.stack([space.model(each).mean(0) for each in _references(space)])
    change = (f - f0).numpy()
    if np.abs(every.sum((1, 2)) - change).max() > 1e-10 * max(1.0, np.abs(every).sum((1, 2)).max()):
        raise Violation("the attributions do not sum up, and nothing is said")
    return HELD


def _references(space: Any) -> list[torch.Tensor]:
    if space.references is None:
        return [space.background] * len(space.x)
    return list(space.references)


def _of_pairs(space: Any) -> Any:
    """Return the mean over explanations of one sample by one reference each."""
    with judged("DeepExplainer of a pair"):
        explainer = DeepExplainer(space.model, space.background[:1], compiled=False, progress=False)
        rows = [
            np.mean(
                [explainer.shap_values(x[None], references=each[None, None])[0] for each in references], 0
            )
            for x, references in zip(space.x, _references(space), strict=True)
        ]
    return np.stack(rows)
