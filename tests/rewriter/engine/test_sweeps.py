"""The sweep through a recurrence against DeepLIFT's formulas, written out in NumPy for one pair at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from rewriter import DeepExplainer

Array = NDArray[np.float64]


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def slope(y: Array, y0: Array, a: Array, a0: Array) -> Array:
    """Rescale rule: the slope of the chord."""
    return (y - y0) / (a - a0)


def weights(layer: nn.RNNBase) -> list[Array]:
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    return [getattr(layer, name).detach().numpy() for name in names]


def lstm(layer: nn.LSTM, x: Array) -> list[dict[str, Array]]:
    """Run one sequence; return every quantity of every step."""
    w_x, w_h, b_x, b_h = weights(layer)
    h = c = np.zeros(layer.hidden_size)
    steps = []
    for row in x:
        a = np.split(w_x @ row + b_x + w_h @ h + b_h, 4)
        i, f, o, g = sigmoid(a[0]), sigmoid(a[1]), sigmoid(a[3]), np.tanh(a[2])
        old, c = c, f * c + i * g
        h = o * np.tanh(c)
        step = {"i": i, "f": f, "g": g, "o": o, "old": old, "c": c, "tanh_c": np.tanh(c), "h": h}
        steps.append(step | dict(zip(("a_i", "a_f", "a_g", "a_o"), a, strict=True)))
    return steps


def lstm_contributions(layer: nn.LSTM, x: Array, x0: Array, output: int) -> Array:
    w_x, w_h, _, _ = weights(layer)
    m_h, m_c = np.eye(layer.hidden_size)[output], np.zeros(layer.hidden_size)
    result = np.zeros_like(x)
    steps = list(zip(lstm(layer, x), lstm(layer, x0), strict=True))
    for t in reversed(range(len(x))):
        s, r = steps[t]
        mean = {name: (s[name] + r[name]) / 2 for name in s}

        def chord(name: str, before: str, s: Any = s, r: Any = r) -> Array:
            return slope(s[name], r[name], s[before], r[before])

        m_o = m_h * mean["tanh_c"] * chord("o", "a_o")
        m_c = m_c + m_h * mean["o"] * chord("tanh_c", "c")
        m_i = m_c * mean["g"] * chord("i", "a_i")
        m_g = m_c * mean["i"] * chord("g", "a_g")
        # The cell state before the first step is zero in both runs, so the mean of it is.
        m_f = m_c * mean["old"] * chord("f", "a_f")
        m_a = np.concatenate([m_i, m_f, m_g, m_o])
        result[t] = (w_x.T @ m_a) * (x[t] - x0[t])
        m_h, m_c = w_h.T @ m_a, m_c * mean["f"]
    return result


def gru(layer: nn.GRU, x: Array) -> list[dict[str, Array]]:
    """Run one sequence; return every quantity of every step."""
    w_x, w_h, b_x, b_h = weights(layer)
    h = np.zeros(layer.hidden_size)
    steps = []
    for row in x:
        from_x, from_h = np.split(w_x @ row + b_x, 3), np.split(w_h @ h + b_h, 3)
        a_r, a_z = from_x[0] + from_h[0], from_x[1] + from_h[1]
        r, z = sigmoid(a_r), sigmoid(a_z)
        a_n = from_x[2] + r * from_h[2]
        n, old = np.tanh(a_n), h
        h = (1 - z) * n + z * h
        steps.append(
            {"a_r": a_r, "a_z": a_z, "a_n": a_n, "r": r, "z": z, "n": n, "h_n": from_h[2], "old": old, "h": h}
        )
    return steps


def gru_contributions(layer: nn.GRU, x: Array, x0: Array, output: int) -> Array:
    w_x, w_h, _, _ = weights(layer)
    m_h = np.eye(layer.hidden_size)[output]
    result = np.zeros_like(x)
    steps = list(zip(gru(layer, x), gru(layer, x0), strict=True))
    for t in reversed(range(len(x))):
        s, r = steps[t]
        mean = {name: (s[name] + r[name]) / 2 for name in s}
        # The textbook's form of the update, (1 - z) n + z h: two products.
        m_n = m_h * (1 - mean["z"]) * slope(s["n"], r["n"], s["a_n"], r["a_n"])
        m_z = m_h * (mean["old"] - mean["n"]) * slope(s["z"], r["z"], s["a_z"], r["a_z"])
        m_r = m_n * mean["h_n"] * slope(s["r"], r["r"], s["a_r"], r["a_r"])
        result[t] = (w_x.T @ np.concatenate([m_r, m_z, m_n])) * (x[t] - x0[t])
        m_h = m_h * mean["z"] + w_h.T @ np.concatenate([m_r, m_z, m_n * mean["r"]])
    return result


@pytest.mark.parametrize(
    ("kind", "contributions"), [(nn.LSTM, lstm_contributions), (nn.GRU, gru_contributions)]
)
def test_every_pair(kind: Any, contributions: Any) -> None:
    layer = kind(3, 4, batch_first=True).double()
    x, background = (torch.randn(n, 6, 3, dtype=torch.float64) for n in (2, 3))
    values = DeepExplainer(layer, background, output=lambda o: o[0][:, -1]).shap_values(x)
    for sample in range(2):
        for output in range(4):
            expected = np.mean(
                [contributions(layer, x[sample].numpy(), each.numpy(), output) for each in background], 0
            )
            np.testing.assert_allclose(values[sample, ..., output], expected, rtol=0, atol=1e-12)
