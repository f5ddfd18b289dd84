"""The rule of softmax, restated, complete, and held against Shapley values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import shap
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from passes.leaves import Atom
from passes.operations.softmax.atoms import LogSoftmaxAtom, LogSumExp, SoftmaxAtom
from passes.operations.table import rule_of
from tests.support.oracles.rows import restated_softmax
from tests.support.oracles.shapley import shapley_of_subsets

DOUBLE = torch.float64


LOGIT = st.floats(-60, 60)


def pulled(atom: Atom, x: Tensor, x0: Tensor, d: Tensor) -> Tensor:
    """Return multipliers of single rows: for ``d``, (K, *output shape), (K, *shape)."""
    x, x0 = x[None, None], x0[None, None]
    (got,) = rule_of(atom).pull((x,), (x0,), atom(x[0])[None], atom(x0[0])[None], d[:, None, None])
    return got[:, 0, 0]


ATOMS: dict[type[Atom], Atom] = {
    SoftmaxAtom: SoftmaxAtom(-1),
    LogSoftmaxAtom: LogSoftmaxAtom(-1),
    LogSumExp: LogSumExp((-1,)),
}


@pytest.mark.parametrize("kind", ATOMS)
@given(st.lists(st.tuples(LOGIT, LOGIT), min_size=1, max_size=6))
def test_rules_as_restated(kind: type[Atom], pairs: list[tuple[float, float]]) -> None:
    x, x0 = (list(side) for side in zip(*pairs, strict=True))
    d = torch.ones(1, dtype=DOUBLE) if kind is LogSumExp else torch.eye(len(x), dtype=DOUBLE)
    got = pulled(ATOMS[kind], torch.tensor(x, dtype=DOUBLE), torch.tensor(x0, dtype=DOUBLE), d)
    # log p, up to 120 in size, carries a rounding of 120 eps, which becomes that of p.
    expected = torch.tensor(restated_softmax(kind, x, x0), dtype=DOUBLE)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ATOMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 30.0, 1000.0, 1e4])
def test_complete_for_every_size_of_delta(kind: type[Atom], dtype: torch.dtype, scale: float) -> None:
    atom = ATOMS[kind]
    for size in (1, 2, 7):
        x0 = torch.randn(size, dtype=dtype) * max(scale, 1.0)
        x = x0 + scale * torch.randn(size, dtype=dtype)
        y, y0 = atom(x), atom(x0)
        d = torch.ones(1, dtype=dtype) if kind is LogSumExp else torch.eye(size, dtype=dtype)
        got = pulled(atom, x, x0, d)
        assert got.isfinite().all()
        error = (got * (x - x0)).sum(-1) - (y - y0)
        # Each Δ is rounded to eps of the logits it is between, and so are outputs of that size.
        assert error.abs().max() <= 8 * torch.finfo(dtype).eps * max(1.0, x.abs().max(), x0.abs().max())


@pytest.mark.parametrize("kind", ATOMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_at_no_delta_is_the_gradient(kind: type[Atom], dtype: torch.dtype) -> None:
    atom = ATOMS[kind]
    x = (3 * torch.randn(5)).to(dtype)
    d = torch.ones(1) if kind is LogSumExp else torch.eye(5)
    got = pulled(atom, x, x, d.to(dtype))
    assert got.dtype is dtype
    expected = torch.autograd.functional.jacobian(atom, x)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got, expected.reshape(got.shape), rtol=8 * eps, atol=4 * eps)


@pytest.mark.parametrize("kind", ATOMS)
def test_multipliers_do_not_change_with_a_shift_of_a_row(kind: type[Atom]) -> None:
    x, x0 = 3 * torch.randn(2, 6, dtype=DOUBLE)
    d = torch.ones(1, dtype=DOUBLE) if kind is LogSumExp else torch.eye(6, dtype=DOUBLE)
    plain = pulled(ATOMS[kind], x, x0, d)
    # Logits of 1e4 are rounded to 2e-12.
    torch.testing.assert_close(pulled(ATOMS[kind], x + 1e4, x0 - 1e4, d), plain, rtol=0, atol=1e-11)
    share = pulled(ATOMS[LogSumExp], x, x0, torch.ones(1, dtype=DOUBLE))
    assert (share >= 0).all()
    assert share.sum().item() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("kind", ATOMS)
def test_logits_masked_in_both_count_for_nothing(kind: type[Atom]) -> None:
    x, x0 = torch.randn(2, 6, dtype=DOUBLE)
    masked = torch.tensor([False, True, False, False, True, False])
    d = torch.ones(1, dtype=DOUBLE) if kind is LogSumExp else torch.eye(6, dtype=DOUBLE)[~masked]
    got = pulled(ATOMS[kind], x.masked_fill(masked, -math.inf), x0.masked_fill(masked, -math.inf), d)
    rest = pulled(ATOMS[kind], x[~masked], x0[~masked], d if kind is LogSumExp else d[:, ~masked])
    torch.testing.assert_close(got[:, ~masked], rest, rtol=0, atol=1e-15)
    assert (got[:, masked] == 0).all()


@pytest.mark.parametrize("kind", ATOMS)
def test_a_logit_masked_in_one_is_the_limit_of_a_small_one(kind: type[Atom]) -> None:
    x, x0 = torch.randn(2, 4, dtype=DOUBLE)
    d = torch.ones(1, dtype=DOUBLE) if kind is LogSumExp else torch.eye(4, dtype=DOUBLE)[1:]
    small, masked = x0.clone(), x0.clone()
    small[0], masked[0] = -1e9, -math.inf
    got = pulled(ATOMS[kind], x, masked, d)
    # The slope of the masked logit goes to 0 as one over its distance.
    torch.testing.assert_close(got, pulled(ATOMS[kind], x, small, d), rtol=0, atol=1e-8)
    # With no logit in common, or none at all, nothing can be said, but nothing breaks.
    other = torch.full_like(x, -math.inf)
    other[0] = 1.0
    assert pulled(ATOMS[kind], masked, other, d).isfinite().all()
    assert pulled(ATOMS[kind], x, torch.full_like(x, -math.inf), d).isfinite().all()


@pytest.mark.parametrize("dim", range(-4, 4))
def test_dimensions_count_in_the_users_tensor(dim: int) -> None:
    x, x0 = torch.randn(2, 1, 2, 3, 4, 5, dtype=DOUBLE)
    d = torch.randn(6, 1, 2, 3, 4, 5, dtype=DOUBLE)
    for kind in (SoftmaxAtom, LogSoftmaxAtom):
        atom, last = kind(dim), kind(-1)
        y, y0 = atom(x[0])[None], atom(x0[0])[None]
        (got,) = rule_of(atom).pull((x,), (x0,), y, y0, d)
        place = dim % 4 - 4
        moved = [each.transpose(place, -1) for each in (x, x0, y, y0, d)]
        (expected,) = rule_of(last).pull((moved[0],), (moved[1],), *moved[2:])
        torch.testing.assert_close(got, expected.transpose(place, -1), rtol=0, atol=1e-15)


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dims", [(1,), (-1,), (3, 1), (-1, 1), (2, -1), (1, 2, 3)])
def test_logsumexp_of_several_dimensions(dims: tuple[int, ...], keepdim: bool) -> None:
    x, x0 = torch.randn(2, 1, 2, 3, 4, 5, dtype=DOUBLE)
    atom = LogSumExp(dims, keepdim)
    y, y0 = atom(x[0])[None], atom(x0[0])[None]
    d = torch.randn(6, *y.shape, dtype=DOUBLE)
    (got,) = rule_of(atom).pull((x,), (x0,), y, y0, d)
    for k, row in itertools.product(range(6), range(2)):
        given_ = (got[k, 0, row] * (x - x0)[0, row]).sum()
        # 60 products of numbers around 1.
        assert given_.item() == pytest.approx((d[k] * (y - y0))[0, row].sum().item(), abs=1e-12)


def weighted_softmax(d: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: (x.softmax(0) * d).sum()


def exponential_over_sum(x: Tensor, x0: Tensor, d: Tensor) -> Tensor:
    """Split exp(x) times the reciprocal of the sum, as shap does in TensorFlow; not centred."""
    e, e0 = x.exp(), x0.exp()
    r, r0 = 1 / e.sum(), 1 / e0.sum()
    through = d * (r + r0) / 2 - (d * (e + e0) / 2).sum() * r * r0
    return through * (e - e0)


def montgomery(x: Tensor, x0: Tensor, d: Tensor) -> Tensor:
    """Take the logarithmic mean of the exponentials, over that of their sums, for weights."""

    def mean(a: Tensor, b: Tensor) -> Tensor:
        return (a - b) / (a.log() - b.log())

    e, e0 = x.exp(), x0.exp()
    p, p0 = e / e.sum(), e0 / e0.sum()
    through = d * mean(p, p0)
    return (through - mean(e, e0) / mean(e.sum(), e0.sum()) * through.sum()) * (x - x0)


def test_nearer_to_shapley_values_than_the_other_candidates() -> None:
    total = dict.fromkeys(("ours", "tensorflow", "montgomery"), 0.0)
    for size, scale in itertools.product((2, 3, 5), (0.5, 2.0, 6.0)):
        distance, length = dict.fromkeys(total, 0.0), 0.0
        for _ in range(40):
            x, x0 = scale * torch.randn(2, size, dtype=DOUBLE)
            d = torch.randn(size, dtype=DOUBLE)
            exact = shapley_of_subsets(weighted_softmax(d), x, x0)
            length += exact.norm().item()
            candidates = {
                "ours": pulled(ATOMS[SoftmaxAtom], x, x0, d[None])[0] * (x - x0),
                "tensorflow": exponential_over_sum(x, x0, d),
                "montgomery": montgomery(x, x0, d),
            }
            for name, values in candidates.items():
                distance[name] += (values - exact).norm().item()
        assert distance["ours"] < distance["tensorflow"]
        total = {name: total[name] + distance[name] / length for name in total}
    # By a quarter on the whole; for single sizes and scales the two logarithmic means may change places.
    assert total["ours"] < 0.85 * total["montgomery"]


@pytest.mark.filterwarnings("ignore:Your TensorFlow version is newer than 2.4.0:UserWarning")
# Keras says that shap puts the one input into a list.
@pytest.mark.filterwarnings("ignore:(?s).*The structure of `inputs` does:UserWarning")
@pytest.mark.parametrize("equal_maxima", [False, True])
def test_nearer_than_shaps_tensorflow_backend(equal_maxima: bool) -> None:
    keras = pytest.importorskip("tensorflow", reason="TensorFlow is not installed").keras
    inputs = keras.Input((5,))
    readout = keras.layers.Dense(1, use_bias=False)
    model = keras.Model(inputs, readout(keras.layers.Softmax()(inputs)))
    ours = theirs = 0.0
    for _ in range(8):
        x, x0 = 2 * torch.randn(2, 5, dtype=DOUBLE).clamp(max=2)
        d = torch.randn(5, dtype=DOUBLE)
        if equal_maxima:
            # Then centring by the maximum takes the same off both rows, and is linear.
            x[0], x0[1] = 5.0, 5.0
        readout.set_weights([d.float().numpy()[:, None]])
        explainer = shap.DeepExplainer(model, x0[None].float().numpy())
        values = explainer.shap_values(x[None].float().numpy(), check_additivity=False)[0, :, 0]
        if equal_maxima:
            # The restatement above is what TensorFlow's backend does; float32.
            assert exponential_over_sum(x - 5, x0 - 5, d).numpy() == pytest.approx(values, abs=1e-5)
        exact = shapley_of_subsets(weighted_softmax(d), x, x0)
        ours += (pulled(ATOMS[SoftmaxAtom], x, x0, d[None])[0] * (x - x0) - exact).norm().item()
        theirs += (torch.from_numpy(values) - exact).norm().item()
    assert ours < theirs
