"""Norm layers: what they compute, and the rule of their quotient."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from passes.leaves import Atom
from passes.operations.norms.standardize import Standardize
from passes.operations.table import rule_of
from rewriter import decompose
from tests.support.additive import assert_additive, assert_copies_compute_the_same, stock_error
from tests.support.compare import assert_close, assert_same_model

DOUBLE = torch.float64
# As the layers themselves differ between machines, in float64; a sum of a few products in float32.
SAME = {torch.float64: 1e-12, torch.float32: 1e-5}


def atoms(model: nn.Module) -> list[Atom]:
    return [module for module in model.modules() if isinstance(module, Atom)]


def random_weights(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


class Call(nn.Module):
    """A function of the input and of two parameters."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor], size: int = 4) -> None:
        super().__init__()
        self.function = function
        self.w = nn.Parameter(torch.randn(size))
        self.b = nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.w, self.b)


class InCode(nn.Module):
    """Cannot be followed by torch.fx; its modules become atoms where they are."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().sum()) > 1e9:
            return x
        y: Tensor = self.norm(x)
        return y


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
CALLS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "layer_norm": lambda x, w, b: F.layer_norm(x, (4,), w, b),
    "layer_norm bare": lambda x, w, b: F.layer_norm(x, [3, 4], eps=0.1),
    "layer_norm weight": lambda x, w, b: F.layer_norm(x, (4,), weight=w),
    "layer_norm bias": lambda x, w, b: F.layer_norm(x, (4,), bias=b),
    "layer_norm of a shape": lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b),
    "layer_norm of a size": lambda x, w, b: F.layer_norm(x, (x.size(1), x.size(2))),
    "layer_norm of the rest": lambda x, w, b: F.layer_norm(x, x.shape[1:]),
    "torch.layer_norm": lambda x, w, b: torch.layer_norm(x, (4,), w, b, 0.1),
    "rms_norm": lambda x, w, b: F.rms_norm(x, (4,), w),
    "torch.rms_norm": lambda x, w, b: torch.rms_norm(x, (3, 4), None, 0.1),
    "group_norm": lambda x, w, b: F.group_norm(x.transpose(1, 2), 2, w, b),
    "torch.group_norm": lambda x, w, b: torch.group_norm(x, 3, eps=0.1),
    "instance_norm": lambda x, w, b: F.instance_norm(x.transpose(1, 2), weight=w, bias=b),
    "instance_norm bare": lambda x, w, b: F.instance_norm(x, eps=0.1),
    "local_response_norm": lambda x, w, b: F.local_response_norm(x, 3, alpha=0.5),
    "weight from the input": lambda x, w, b: F.layer_norm(x, (4,), x.mean((0, 1)) * w, b),
}


def assert_same_to(model: nn.Module, exact: nn.Module, x: Tensor) -> None:
    assert_same_model(model, exact, x)
    assert_close(exact(x), model(x), SAME[x.dtype], "output")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_compute_the_same(name: str, dtype: torch.dtype) -> None:
    build, shape = LAYERS[name]
    model = nn.Sequential(random_weights(build()), nn.Identity()).to(dtype)
    exact = decompose(model)
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


# The rule


def pulled(atom: Atom, x: Tensor, x0: Tensor, d: Tensor) -> Tensor:
    """Return multipliers of single rows: for ``d``, (K, *output shape), (K, *shape)."""
    x, x0 = x[None, None], x0[None, None]
    (got,) = rule_of(atom).pull((x,), (x0,), atom(x[0])[None], atom(x0[0])[None], d[:, None, None])
    return got[:, 0, 0]


def restated(x: list[float], x0: list[float], eps: float, centred: bool) -> list[list[float]]:
    """Return d output / d input: the product y s = c split by the means of its factors, in fractions."""
    n = len(x)
    rows = [[Fraction(v) for v in row] for row in (x, x0)]
    means = [sum(row) / n if centred else Fraction(0) for row in rows]
    c, c0 = ([v - m for v in row] for row, m in zip(rows, means, strict=True))
    s, s0 = (Fraction(math.sqrt(float(sum(v * v for v in row) / n) + eps)) for row in (c, c0))
    jacobian = []
    for j in range(n):
        mean_y = (c[j] / s + c0[j] / s0) / 2
        # Of c_i, by s² = mean of c² + eps.
        row = [((i == j) - mean_y * (c[i] + c0[i]) / n / (s + s0)) * 2 / (s + s0) for i in range(n)]
        jacobian.append([float(v - (sum(row) / n if centred else 0)) for v in row])
    return jacobian


@pytest.mark.parametrize("centred", [True, False])
@given(
    st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=1, max_size=6),
    st.sampled_from([1e-5, 0.1, 3.0]),
)
def test_rule_as_restated(centred: bool, pairs: list[tuple[float, float]], eps: float) -> None:
    x, x0 = (list(side) for side in zip(*pairs, strict=True))
    atom = Standardize(-1, eps, centred)
    got = pulled(
        atom,
        torch.tensor(x, dtype=DOUBLE),
        torch.tensor(x0, dtype=DOUBLE),
        torch.eye(len(x), dtype=DOUBLE),
    )
    # Deviations of numbers up to 100 are rounded to 1e-14, and divided by at least sqrt(eps) = 3e-3.
    expected = torch.tensor(restated(x, x0, eps, centred), dtype=DOUBLE)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("reference", ["any", "constant", "zero", "far", "same", "near"])
def test_complete(reference: str, dtype: torch.dtype, centred: bool) -> None:
    for atom in (Standardize(-1, 1e-5, centred), Standardize((6,), 1e-5, centred)):
        x = torch.randn(6, dtype=dtype)
        x0 = {
            "any": torch.randn(6, dtype=dtype),
            "constant": torch.full((6,), 0.3, dtype=dtype),
            "zero": torch.zeros(6, dtype=dtype),
            "far": 1e4 * torch.randn(6, dtype=dtype),
            "same": x,
            "near": x + 1e-6,
        }[reference]
        got = pulled(atom, x, x0, torch.eye(6, dtype=dtype))
        assert got.isfinite().all()
        error = (got * (x - x0)).sum(-1) - (atom(x) - atom(x0))
        # Outputs are around 1, and so is all that is summed: nothing is divided by a variance of 0. But
        # torch itself sees rounding where a row is constant, and multiplies it by 1 / sqrt(1e-5).
        rounding = 0.3 * 1e-5**-0.5 if reference == "constant" else 32
        assert error.abs().max() <= rounding * torch.finfo(dtype).eps


@pytest.mark.parametrize("atom", [Standardize(-1), Standardize((5,), None, centred=False)])
def test_at_no_delta_is_the_gradient(atom: Atom) -> None:
    x = torch.randn(5, dtype=DOUBLE)
    expected = torch.autograd.functional.jacobian(atom, x)
    got = pulled(atom, x, x, torch.eye(5, dtype=DOUBLE))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


def test_a_shift_of_a_row_changes_nothing() -> None:
    x, x0 = torch.randn(2, 5, dtype=DOUBLE)
    atom, d = Standardize(-1), torch.eye(5, dtype=DOUBLE)
    # The mean of numbers around 100 is rounded to 1e-14.
    torch.testing.assert_close(pulled(atom, x + 100, x0 - 100, d), pulled(atom, x, x0, d), rtol=0, atol=1e-12)


@pytest.mark.parametrize("over", [1, 2, 3, -1, -2, (4, 5), (5,)])
def test_dimensions_count_in_the_users_tensor(over: int | tuple[int, ...]) -> None:
    x, x0 = torch.randn(2, 1, 2, 3, 4, 5, dtype=DOUBLE)
    atom = Standardize(over)
    d = torch.randn(6, 1, 2, 3, 4, 5, dtype=DOUBLE)
    y, y0 = atom(x[0]), atom(x0[0])
    (got,) = rule_of(atom).pull((x,), (x0,), y[None], y0[None], d)
    # 60 products of numbers around 1 in each row.
    expected = (d * (y - y0)).flatten(3).sum((1, 3))
    torch.testing.assert_close((got * (x - x0)).flatten(3).sum((1, 3)), expected, rtol=0, atol=1e-12)


def shapley(function: Callable[[Tensor], Tensor], x: Tensor, x0: Tensor) -> Tensor:
    """Exact Shapley values of few numbers, from the values of all subsets."""
    n = len(x)
    subsets = list(itertools.product((False, True), repeat=n))
    values = {s: function(torch.where(torch.tensor(s), x, x0)) for s in subsets}
    phi = torch.zeros(n, dtype=x.dtype)
    for i, s in itertools.product(range(n), subsets):
        if not s[i]:
            size = sum(s)
            weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
            phi[i] += weight * (values[(*s[:i], True, *s[i + 1 :])] - values[s])
    return phi


def by_reciprocal(x: Tensor, x0: Tensor, d: Tensor, eps: float) -> Tensor:
    """Split the product with the reciprocal of the root instead."""
    c, c0 = x - x.mean(), x0 - x0.mean()
    r, r0 = ((each.square().mean() + eps).rsqrt() for each in (c, c0))
    through = d * (r + r0) / 2 - (c + c0) / len(x) * (r * r0) ** 2 / (r + r0) * (d * (c + c0) / 2).sum()
    return (through - through.mean()) * (x - x0)


@pytest.mark.parametrize(("spread", "gain"), [(1.0, 1.0), (1e-3, 20.0)])
def test_nearer_to_shapley_values_than_a_product_with_the_reciprocal(spread: float, gain: float) -> None:
    ours = other = 0.0
    atom = Standardize(-1)
    for _ in range(60):
        x, x0 = torch.randn(5, dtype=DOUBLE), spread * torch.randn(5, dtype=DOUBLE)
        d = torch.randn(5, dtype=DOUBLE)
        exact = shapley(lambda z, d=d: (atom(z) * d).sum(), x, x0)
        ours += (pulled(atom, x, x0, d[None])[0] * (x - x0) - exact).norm().item()
        other += (by_reciprocal(x, x0, d, 1e-5) - exact).norm().item()
    assert gain * ours < other


# Whole models


class Recurrent(nn.Module):
    """An LSTM with a norm on its states, and around the residual of a second."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 6, batch_first=True)
        self.first = first
        self.again = nn.GRU(6, 6, batch_first=True)
        self.second = second
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        states = self.first(self.rnn(x)[0])
        states = states + self.second(self.again(states)[0])
        return self.head(states[:, -1])


class Transposed(nn.Module):
    """Channels in dimension 1."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return y


MODELS: dict[str, Callable[[], nn.Module]] = {
    "LSTM + LayerNorm": lambda: Recurrent(nn.LayerNorm(6), nn.LayerNorm((5, 6))),
    "residual + RMSNorm": lambda: Recurrent(nn.RMSNorm(6), nn.RMSNorm(6)),
    "GroupNorm": lambda: Recurrent(Transposed(nn.GroupNorm(2, 6)), Transposed(nn.GroupNorm(3, 6))),
    "InstanceNorm": lambda: Recurrent(Transposed(nn.InstanceNorm1d(6, affine=True)), nn.Identity()),
    "LocalResponseNorm": lambda: Recurrent(Transposed(nn.LocalResponseNorm(3, alpha=0.5)), nn.Identity()),
    "functions": lambda: Recurrent(
        Call(CALLS["layer_norm of a shape"], 6), Transposed(Call(lambda x, w, b: F.group_norm(x, 2, w, b), 6))
    ),
    "in code": lambda: Recurrent(InCode(nn.LayerNorm(6)), InCode(nn.RMSNorm(6))),
}


@pytest.mark.parametrize("name", MODELS)
def test_whole_model_is_additive(name: str) -> None:
    model = random_weights(MODELS[name]())
    assert_additive(model, torch.randn(4, 5, 3), torch.randn(7, 5, 3))


def test_constant_rows_are_additive() -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))
    x, background = torch.randn(5, 4), torch.randn(7, 4)
    x[0] = 0
    x[1] = 0.7
    background[:3] = 0
    assert_additive(model, x, background)


def test_stock_shap_is_not_additive_there() -> None:
    assert stock_error(MODELS["LSTM + LayerNorm"](), torch.randn(4, 5, 3), torch.randn(7, 5, 3)) > 1e-3
