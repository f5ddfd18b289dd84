"""What takes the place of operators that ONNX lacks gives what torch gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rewriter.engine.tape import Pairing
from rewriter.onnx_explainer.operators import DECOMPOSITIONS
from rewriter.onnx_explainer.rows import Rows
from rewriter.onnx_explainer.scans import scan
from rewriter.onnx_explainer.trace import traced

CONVOLUTIONS: list[tuple[Any, tuple[int, ...]]] = [
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (4, 12)),
    (nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(0, 1)), (2, 8, 5)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 7)),
    (nn.AvgPool1d(3, 2, 1), (2, 8)),
    (nn.AvgPool2d(3, 2, 1, count_include_pad=False), (2, 8, 7)),
    (nn.AvgPool2d((2, 3), divisor_override=5), (2, 6, 7)),
    (nn.AvgPool3d(2, 1), (2, 3, 4, 3)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=lambda each: type(each).__name__)
def test_gradients_of_linear_layers(layer: Any, shape: tuple[int, ...]) -> None:
    layer = layer.double()

    def pulled(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            y = layer(x)
            return torch.autograd.grad(y, x, torch.arange(y.numel(), dtype=y.dtype).view(y.shape))[0]

    x = torch.randn(3, *shape, dtype=torch.float64)
    noted = traced(pulled, [x], [{}])
    names = {node.target for node in noted.graph.graph.nodes}
    assert not names & set(DECOMPOSITIONS)
    assert torch.allclose(noted.graph(x), pulled(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_products_of_all_before(size: int) -> None:
    x = torch.randn(3, size, 2, dtype=torch.float64)
    found = DECOMPOSITIONS[torch.ops.aten.cumprod.default](x, 1)
    assert torch.allclose(found, torch.cumprod(x, 1), rtol=1e-14)


@pytest.mark.parametrize("function", [torch.expm1, torch.log1p])
def test_small_differences_keep_their_digits(function: Any) -> None:
    small = torch.logspace(-40, 1, 500, dtype=torch.float64)
    x = torch.cat([small, -small[small < 1], 100 * small, torch.tensor([0.0, torch.inf])])
    (found,) = (found for operator, found in DECOMPOSITIONS.items() if function.__name__ in str(operator))
    a, b = found(x), function(x)
    finite = b.isfinite()
    # A few roundings of float64.
    assert (a[finite] - b[finite]).abs().le(1e-15 * 4 * b[finite].abs()).all()
    assert torch.equal(a[~finite], b[~finite])


@pytest.mark.parametrize("outer", [1, 2])
def test_rows_of_pairs_are_taken_apart_and_put_together(outer: int) -> None:
    rows = Rows(Pairing(3, 4, end=4), 2)
    # outer x K x N x M x inner, in dimension 1.
    d = torch.arange(5 * outer * 2 * 4 * 3 * 2.0).view(5, -1)
    split = rows.split(d, (5, outer * 3 * 2), outer)
    assert split.shape == (2, 4, 5, outer * 3 * 2)
    k, n, m = 1, 2, 0
    place = (((outer - 1) * 2 + k) * 4 + n) * 3 + m
    assert split[k, n, 4, ((outer - 1) * 3 + m) * 2 + 1] == d[4, place * 2 + 1]
    assert torch.equal(rows.join(split, d.shape, outer), d)


class Decayed(nn.Module):
    def forward(self, state: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        new = state @ weight + x
        return new, new.tanh()


def test_loop_runs_from_either_end() -> None:
    x, weight = torch.randn(4, 2, 3), torch.randn(3, 3)
    for reverse in (False, True):
        (last,), (out,) = scan("loop", Decayed(), [torch.zeros(2, 3)], [x], [weight], reverse=reverse)
        state = torch.zeros(2, 3)
        for t in reversed(range(4)) if reverse else range(4):
            state = F.linear(state, weight.T) + x[t]
            assert torch.allclose(out[t], state.tanh())
        assert torch.allclose(last, state)
