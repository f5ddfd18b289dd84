"""Norms become atoms that compute the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.leaves import Atom
from passes.operations.norms.standardize import Standardize
from rewriter import decompose
from tests.support.additive import assert_copies_compute_the_same
from tests.support.compare import assert_close, assert_same_model
from tests.support.models.norms import CALLS, Call, InCode, random_weights

# As the layers themselves differ between machines, in float64; a sum of a few products in float32.
SAME = {torch.float64: 1e-12, torch.float32: 1e-5}


def atoms(model: nn.Module) -> list[Atom]:
    return [module for module in model.modules() if isinstance(module, Atom)]


# Each takes (2, 4, 6) or what stands beside it.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "LayerNorm": (lambda: nn.LayerNorm(6), (2, 4, 6)),
    "LayerNorm of two dimensions": (lambda: nn.LayerNorm((4, 6), eps=0.1), (2, 3, 4, 6)),
    "LayerNorm without weights": (lambda: nn.LayerNorm(6, elementwise_affine=False), (2, 4, 6)),
    "LayerNorm without bias": (lambda: nn.LayerNorm(6, bias=False), (2, 6)),
    "RMSNorm": (lambda: nn.RMSNorm(6), (2, 4, 6)),
    "RMSNorm of two dimensions": (lambda: nn.RMSNorm((4, 6), eps=0.1), (2, 4, 6)),
    "RMSNorm without weight": (lambda: nn.RMSNorm(6, elementwise_affine=False), (2, 6)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), (2, 4, 6)),
    "GroupNorm of vectors": (lambda: nn.GroupNorm(2, 6), (2, 6)),
    "GroupNorm of images": (lambda: nn.GroupNorm(4, 4, eps=0.1, affine=False), (2, 4, 5, 6)),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(4), (2, 4, 6)),
    "InstanceNorm1d with weights": (lambda: nn.InstanceNorm1d(4, affine=True, eps=0.1), (2, 4, 6)),
    "InstanceNorm1d unbatched": (lambda: nn.InstanceNorm1d(4, affine=True), (4, 6)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(4, affine=True), (2, 4, 5, 6)),
    "InstanceNorm3d": (lambda: nn.InstanceNorm3d(4, affine=True), (2, 4, 3, 5, 6)),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(3, alpha=0.5), (2, 5, 6)),
    "LocalResponseNorm of images": (lambda: nn.LocalResponseNorm(2, 0.3, 0.5, 2.0), (2, 5, 4, 6)),
}


def assert_same_to(model: nn.Module, exact: nn.Module, x: Tensor) -> None:
    assert_same_model(model, exact, x)
    assert_close(exact(x), model(x), SAME[x.dtype], "output")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_compute_the_same(name: str, dtype: torch.dtype) -> None:
    build, shape = LAYERS[name]
    model = nn.Sequential(random_weights(build()), nn.Identity()).to(dtype)
    exact: Any = decompose(model)
    assert atoms(exact)
    assert len(exact.report.operations) == 1
    assert exact.state_dict().keys() == model.state_dict().keys()
    assert {id(p) for p in exact.parameters()} == {id(p) for p in model.parameters()}
    x = 3 + 2 * torch.randn(shape, dtype=dtype)
    assert_same_to(model, exact, x)
    assert_same_to(model.eval(), decompose(InCode(model[0]).eval()), x)
    assert_copies_compute_the_same(model, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CALLS)
def test_calls_compute_the_same(name: str, dtype: torch.dtype) -> None:
    model = Call(CALLS[name]).to(dtype)
    exact = decompose(model)
    assert atoms(exact)
    assert_same_to(model, exact, 3 + 2 * torch.randn(2, 3, 4, dtype=dtype))


@pytest.mark.parametrize("name", LAYERS)
def test_bfloat16(name: str) -> None:
    build, shape = LAYERS[name]
    model = random_weights(build()).to(torch.bfloat16)
    x = torch.randn(shape, dtype=torch.bfloat16)
    exact = decompose(nn.Sequential(model))
    assert exact(x).dtype is torch.bfloat16
    expected = copy.deepcopy(model).double()(x.double()).to(torch.bfloat16)
    # Eight bits, rounded once more per weight than torch does.
    assert_close(exact(x), expected, 4 * torch.finfo(torch.bfloat16).eps, "output")


@pytest.mark.parametrize(
    "layer",
    [nn.LayerNorm(4), nn.RMSNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True)],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_keep_their_face(layer: nn.Module) -> None:
    lowered = decompose(InCode(layer)).norm
    assert isinstance(lowered, type(layer))
    assert type(lowered) is not type(layer)
    assert lowered.weight is layer.weight
    assert lowered.eps == layer.eps
    assert type(layer) in (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm1d)
    assert "standardize" not in dict(layer.named_modules())


def test_what_is_linear_or_mixes_rows_is_left() -> None:
    for layer in (
        nn.BatchNorm1d(4),
        nn.InstanceNorm1d(4, track_running_stats=True),
        nn.BatchNorm1d(4, track_running_stats=False),
    ):
        exact = decompose(nn.Sequential(layer).eval())
        assert not atoms(exact)
        assert type(exact.get_submodule("0")) is type(layer)
        # Only the last is not linear.
        assert ("batch statistics" in str(exact.report)) == (layer.running_mean is None)
        assert ("no rule" in str(exact.report)) is False


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w, b: F.layer_norm(x, x.new_zeros(3, 4).shape),
        lambda x, w, b: F.instance_norm(x, w.detach()[:3], b.detach()[:3].exp(), use_input_stats=False),
    ],
)
def test_calls_that_are_left(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    model = Call(function)
    exact = decompose(model)
    assert not [each for each in atoms(exact) if isinstance(each, Standardize)]
    x = torch.randn(2, 3, 4)
    assert torch.equal(exact(x), model(x))


def test_wrong_shapes_are_still_refused() -> None:
    exact = decompose(nn.Sequential(nn.LayerNorm(6, elementwise_affine=False)))
    with pytest.raises(RuntimeError, match="normalized_shape"):
        exact(torch.randn(2, 5))
