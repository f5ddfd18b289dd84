"""Kernels that are called directly, and lengths that vary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from passes.errors import DeclinedError
from rewriter import RewriteError, decompose
from tests.support.compare import assert_same_model
from tests.support.models.soundness import Base, Plain, gru


def kernel(x: Tensor, w: Tensor) -> Tensor:
    return torch.gru_cell(x, x, w, w)


class OutsideMethods(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(9, 3))

    def forward(self, x: Tensor) -> Tensor:
        return kernel(x, self.w)


class MadeLate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.GRU(3, 3, batch_first=True)(x)[0]


def test_kernels_that_no_layer_shows_are_refused() -> None:
    with pytest.raises(DeclinedError, match="its code calls torch's gru_cell"):
        decompose(OutsideMethods())
    with pytest.raises(RewriteError, match=r"runs torch's own gru at test_kernels\.py:\d+, in a layer that"):
        decompose(MadeLate(), torch.randn(2, 4, 3))


class SortedPack(Base):
    def forward(self, packed: Any) -> Tensor:
        return pad_packed_sequence(self.g(packed)[0], batch_first=True)[0]


@pytest.mark.parametrize("sort", [True, False])
def test_packed_input_unpacked_inside(sort: bool) -> None:
    lengths = torch.tensor([4, 3, 1] if sort else [1, 4, 3])
    packed = pack_padded_sequence(torch.randn(3, 4, 3), lengths, batch_first=True, enforce_sorted=sort)
    model = SortedPack()
    assert_same_model(model, decompose(model), packed)
    assert_same_model(model, decompose(model, packed), packed)


def test_inference_mode_and_lazy_modules() -> None:
    model = Plain()
    x = torch.randn(2, 4, 3)
    with torch.inference_mode():
        rewritten = decompose(model, x)
    assert_same_model(model, rewritten, x)
    with pytest.raises(RewriteError, match=r"0\.weight has no shape yet"):
        decompose(nn.Sequential(nn.LazyLinear(3), gru()))


class TwoLengths(nn.Module):
    """One layer called by the graph, and by code that stays code, with another length."""

    def __init__(self) -> None:
        super().__init__()
        self.g = gru()
        self.branch = Branch(self.g)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(self.g(x)[0][:, :2])


class Branch(nn.Module):
    def __init__(self, g: nn.GRU) -> None:
        super().__init__()
        self.g = g

    def forward(self, x: Tensor) -> Tensor:
        return self.g(x)[0] if x.sum() < 1e9 else x


def test_graph_and_island_share_a_layer() -> None:
    model = TwoLengths()
    x = torch.randn(2, 5, 3)
    assert_same_model(model, decompose(model, x), x)
