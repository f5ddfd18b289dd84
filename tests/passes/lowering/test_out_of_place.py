"""Writes in place are computed out of place."""

from __future__ import annotations

import pytest
import torch

from passes.graph.writes import write_of
from rewriter import decompose
from tests.support.additive import TOLERANCE, assert_additive, assert_copies_compute_the_same
from tests.support.models.writes import CASES, Model

WITHOUT_GRADIENT = {
    "method",
    "operators",
    "function_in_place",
    "base_is_written",
    "views_of_views",
    "item_is_multiplied",
}


@pytest.mark.parametrize("name", CASES)
def test_values_gradients_and_additivity(name: str) -> None:
    torch.manual_seed(0)
    model = Model(name)
    x, background = torch.randn(4, 3), torch.randn(5, 3)
    for dtype, tolerance in TOLERANCE.items():
        typed = model.to(dtype)
        exact = decompose(typed)
        assert not exact.report.islands
        a, b = (x.to(dtype).requires_grad_() for _ in range(2))
        # Twice: nothing of the first call may be left in the second.
        y = [exact(a), exact(a)][1]
        y0 = typed(b)
        torch.testing.assert_close(y, y0, rtol=0, atol=tolerance * max(1.0, y0.abs().max().item()))
        (gradient,) = torch.autograd.grad(y.sum(), a)
        try:
            (expected,) = torch.autograd.grad(y0.sum(), b)
        except RuntimeError:
            # The original overwrites what its own gradient needs.
            assert name in WITHOUT_GRADIENT
            continue
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(gradient, expected, rtol=0, atol=tolerance * scale)
    assert_additive(model, x, background)
    assert_copies_compute_the_same(model.float(), x)


SHARED = {"view_by_method", "transposed_view", "base_is_written", "overlapping_views", "views_of_views"}


@pytest.mark.parametrize(
    "name", sorted(CASES.keys() - SHARED - {"constant_with_a_view", "sizes", "copy_is_not_a_view"})
)
def test_no_write_is_left(name: str) -> None:
    writes = [node for node in decompose(Model(name)).graph.nodes if write_of(node)]
    assert writes == []


def test_writes_to_shared_memory_stay() -> None:
    graph = decompose(Model("overlapping_views")).graph
    assert [node.target for node in graph.nodes if write_of(node)] == ["copy_"]
