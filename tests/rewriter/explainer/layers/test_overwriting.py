"""Layers in place whose result is read by another name: the layer's memory is what it takes and gives.

The oracle is written out of place: what is behind the layer, as a function of the part that it overwrites
and of the rest, explained by stock shap. Writing is no rule, so the atoms are the same.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, decompose
from tests.support.models.overwriting import OVERWRITING, WAYS, FromPart, Overwritten
from tests.support.stock import assert_same, stock

# Other tests run the same code; coverage would take as long again.
pytestmark = pytest.mark.unmeasured

# float64.
EXACT = 1e-11


@pytest.mark.parametrize("branches", [False, True], ids=["graph", "code"])
@pytest.mark.parametrize("before", [False, True], ids=["itself", "a view of before"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", OVERWRITING)
def test_what_a_layer_in_place_takes_and_gives(kind: str, way: str, *, before: bool, branches: bool) -> None:
    layer = OVERWRITING[kind]()
    model = Overwritten(layer, WAYS[way], before=before, branches=branches).double().eval()
    x, background = (torch.randn(n, 3, dtype=torch.float64) for n in (3, 4))
    assert bool(decompose(model).report.islands) == branches
    taken, taken0 = (
        [WAYS[way].take(model.first(each)).detach(), model.first(each).detach()] for each in (x, background)
    )
    rows = -1 if way == "a transpose" else 0
    for to_input in (True, False):
        given, given0 = (
            [parts[0] if to_input else layer(parts[0].clone()).detach(), parts[1]]
            for parts in (taken, taken0)
        )
        behind = FromPart(model, layer if to_input else None)
        expected = stock(
            _Rows(behind, rows), *([each[0].movedim(rows, 0), each[1]] for each in (given0, given))
        )
        explainer = DeepExplainer((model, layer), background, attribute_to_layer_input=to_input)
        assert_same(explainer.shap_values(x), expected[0], EXACT)
        assert np.abs(expected[0]).max() > 1e-3


@pytest.mark.parametrize("branches", [False, True], ids=["graph", "code"])
@pytest.mark.parametrize("way", WAYS)
def test_a_neuron_of_a_layer_in_place(way: str, *, branches: bool) -> None:
    layer = nn.SiLU(inplace=True)
    model = Overwritten(layer, WAYS[way], before=False, branches=branches).double().eval()
    x, background = (torch.randn(n, 3, dtype=torch.float64) for n in (3, 4))
    rows = -1 if way == "a transpose" else 0
    neuron = nn.Sequential(model.first, _Taken(way), nn.SiLU())

    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neuron = neuron

        def forward(self, x: Tensor) -> Tensor:
            return self.neuron(x).movedim(rows, 0).reshape(len(x), -1)

    got = DeepExplainer(model, background, output=(layer, None)).shap_values(x)
    expected = stock(Given(), background, x)
    assert_same(got.reshape(expected.shape), expected, EXACT)


class _Taken(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.take = WAYS[way].take

    def forward(self, y: Tensor) -> Tensor:
        return self.take(y)


class _Rows(nn.Module):
    """Takes the part with the batch first."""

    def __init__(self, behind: nn.Module, rows: int) -> None:
        super().__init__()
        self.behind, self.rows = behind, rows

    def forward(self, part: Tensor, y: Tensor) -> Tensor:
        return self.behind(part.movedim(0, self.rows), y)
