"""What a call becomes computes what the call computes, in every form that torch has of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from passes.operations.catalogue import lowered
from passes.operations.contract import Varies
from rewriter import decompose
from tests.support.oracles.samples import DOUBLE, Call, calls, entries, in_all_forms, tensors_of

# Other tests run the same code; coverage would take as long again.
pytestmark = pytest.mark.unmeasured


def choices(call: Call) -> Iterator[Varies]:
    """Let all floating-point tensors among the arguments of a call vary, and each alone."""
    floats = [id(each) for each in tensors_of(call[1:]) if each.is_floating_point()]
    for varying in dict.fromkeys([frozenset(floats), *(frozenset([each]) for each in floats)]):

        def varies(value: Any, varying: frozenset[int] = varying) -> bool:
            return any(id(each) in varying for each in pytree.tree_leaves(value))

        yield varies


def assert_same(got: Any, expected: Any, what: str) -> None:
    """Compare results, item by item where there are several."""
    if not isinstance(expected, Tensor):
        assert len(got) == len(expected), what
        for a, b in zip(got, expected, strict=True):
            assert_same(a, b, what)
        return
    assert isinstance(got, Tensor), what
    # Some are computed in another order.
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12, equal_nan=True, msg=lambda m: what + m)


@pytest.mark.parametrize("entry", entries(lambda each: each.lower is not None))
def test_computes_what_torch_computes(entry: Any) -> None:
    compared = 0
    for sample in calls(entry, 16, spread=True):
        if not next(iter(tensors_of(sample[1:]))).numel():
            # There are no numbers to compare.
            continue
        for call, expected in in_all_forms(sample):
            for varies in choices(call):
                textbook = lowered(call[0], varies, *call[1:])
                if textbook is None:
                    continue
                module, operands = textbook
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    torch.manual_seed(0)
                    got = module.eval()(*operands)
                assert_same(got, expected, f"{call[0]} {call[2]}: ")
                compared += 1
    assert compared or f"{entry.name} {entry.variant_test_name}".strip() in NEVER_LOWERED


# Over all dimensions, hence over the rows of a batch; or of another order than those that have a rule.
NEVER_LOWERED = {
    *("linalg.norm subgradients_at_zero", "linalg.pinv singular"),
}


@pytest.mark.parametrize(
    ("function", "size"),
    [
        (torch.adaptive_max_pool1d, 2),
        (torch._C._nn.adaptive_max_pool2d, (2, 3)),
        (torch.ops.aten.adaptive_max_pool1d.default, [2]),
        (torch.ops.aten.adaptive_max_pool2d.default, [2, 3]),
        (torch.ops.aten.adaptive_max_pool3d.default, [1, 2, 3]),
    ],
)
def test_a_pool_in_cpp_returns_places_beside(function: Any, size: Any) -> None:
    space = 1 if isinstance(size, int) else len(size)
    x = torch.randn(2, 3, *(4, 5, 6)[:space], dtype=DOUBLE)
    textbook = lowered(function, lambda value: value is x, (x, size), {})
    assert textbook is not None
    assert_same(textbook[0](x), function(x, size), str(function))


def test_a_whole_exponent_may_be_negative() -> None:
    """Torch's own gradient of ``ldexp`` is zero there."""
    exponents = torch.tensor([1, 2, -3, 0])
    x = torch.randn(4, dtype=DOUBLE, requires_grad=True)
    textbook = lowered(torch.ldexp, lambda value: value is x, (x, exponents), {})
    assert textbook is not None
    module, operands = textbook
    (slopes,) = torch.autograd.grad(module(*operands).sum(), x)
    assert torch.equal(slopes, 2.0 ** exponents.double())


def test_an_exported_pool_is_the_same_function() -> None:
    model, x = nn.Sequential(nn.AdaptiveMaxPool1d(2), nn.Flatten(), nn.Linear(6, 2)), torch.randn(4, 3, 8)
    rewritten = decompose(torch.export.export(model, (x,)).module())
    assert torch.equal(rewritten(x), model(x))
    assert not rewritten.report.uncovered
