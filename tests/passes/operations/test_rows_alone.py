"""What goes over all numbers of a row, or over a batch that one row is: in code that runs, row by row."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.errors import RewriteError
from rewriter import DeepExplainer
from tests.support.oracles.shapley import shapley_of_orders

DOUBLE = torch.float64


class RowByRow(nn.Module):
    """A loop over rows, each of which is computed alone."""

    def __init__(self, of_row: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.of_row = of_row

    def forward(self, x: Tensor) -> Tensor:
        rows = [self.of_row(row) for row in x]
        return torch.stack([torch.cat([each.reshape(-1) for each in _parts(row)]) for row in rows])


def _parts(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def explained(of_row: Callable[[Tensor], Any], x: Tensor, x0: Tensor) -> np.ndarray:
    return DeepExplainer(RowByRow(of_row), x0, progress=False).shap_values(x)


A = torch.tensor([[0.0, 1, 2], [3, 0, 0], [0, 0, 0]], dtype=DOUBLE)
with warnings.catch_warnings():
    # Torch says that they are in beta state.
    warnings.simplefilter("ignore")
    SPARSE = A.to_sparse_csr()
ROWS: dict[str, Callable[[Tensor], Any]] = {
    "max": lambda r: (r.max(), r.min(), *torch.aminmax(r.reshape(2, 3), keepdim=True), r.amax()),
    "variance": lambda r: (r.var(), torch.std(r, False), *torch.var_mean(r), r.std(keepdim=True)),
    "norm": lambda r: (r.norm(), torch.linalg.norm(r.reshape(2, 3), 1), torch.norm(r.reshape(2, 3), "nuc")),
    "dist": lambda r: (torch.dist(r, r * r, 3), F.pdist(r.reshape(3, 2))),
    "product": lambda r: (r.prod(), torch.cumprod(r, 0, dtype=DOUBLE)),
    "order": lambda r: (r.median(), torch.quantile(r, 0.3), torch.nanmedian(r)),
    "batch_norm": lambda r: F.batch_norm(r.reshape(3, 2), None, None, training=True),
    "running": lambda r: F.batch_norm(r.reshape(1, 2, 3), r[:2], r[2:4].abs() + 1, r[4:], r[:2]),
    "instance_norm": lambda r: F.instance_norm(r.reshape(1, 2, 3), A[0, :2], A[0, 1:]),
    "bags": lambda r: tuple(
        F.embedding_bag(torch.tensor([0, 1, 2, 0]), r.reshape(3, 2), torch.tensor([0, 1, 1]), mode=mode)
        for mode in ("sum", "mean", "max")
    ),
    "padded bags": lambda r: F.embedding_bag(
        torch.tensor([[0, 2], [1, 1]]), r.reshape(3, 2), mode="mean", padding_idx=-1
    ),
    "sparse": lambda r: tuple(
        torch.sparse.mm(SPARSE, r.reshape(3, 2), how) for how in ("sum", "mean", "amax", "amin")
    ),
    "unpool": lambda r: F.max_unpool1d(r.reshape(1, 1, 6), torch.tensor([[[1, 0, 1, 3, 3, 7]]]), [2]),
    "strided": lambda r: torch.as_strided_scatter(r.clone(), (r[:2] * 2).exp(), (2,), (3,), 1),
    "least squares": lambda r: torch.linalg.lstsq(r.reshape(3, 2), (r[:3] ** 2).unsqueeze(1), driver="gels"),
    "lu": lambda r: torch.linalg.lu_factor_ex(r[:4].reshape(2, 2) + 3 * torch.eye(2, dtype=DOUBLE)).LU,
    "poisson": lambda r: F.poisson_nll_loss(r, 3 * r.flip(0).abs(), full=True, reduction="none"),
    "mantissa": lambda r: torch.frexp(r).mantissa,
    "power pool": lambda r: F.lp_pool1d(r.abs().reshape(1, 1, 6), 3, 2),
}


@pytest.mark.parametrize("name", ROWS)
def test_is_additive_row_by_row(name: str) -> None:
    x, x0 = (torch.randn(2, 6, dtype=DOUBLE) for _ in range(2))

    def of_row(row: Tensor) -> list[Tensor]:
        return [each for each in _parts(ROWS[name](row)) if each.dtype == DOUBLE]

    model = RowByRow(of_row)
    change = (model(x) - model(x0).mean(0)).numpy()
    assert abs(change).max() > 1e-3
    # Sixteen nodes of a line are enough to rounding.
    np.testing.assert_allclose(explained(of_row, x, x0).sum(1), change, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "of_row",
    [lambda r: r.max(), lambda r: r.median(), lambda r: torch.quantile(r, 0.4), lambda r: torch.amin(r)],
    ids=["max", "median", "quantile", "amin"],
)
def test_one_number_of_all_is_shared_as_in_all_orders(of_row: Callable[[Tensor], Tensor]) -> None:
    x, x0 = (torch.randn(1, 4, dtype=DOUBLE) for _ in range(2))

    def game(row: list[float]) -> float:
        return float(of_row(torch.tensor(row, dtype=DOUBLE)))

    expected = shapley_of_orders(game, x[0].tolist(), x0[0].tolist())
    np.testing.assert_allclose(explained(of_row, x, x0)[0, :, 0], expected, rtol=0, atol=1e-12)


def test_what_is_not_a_number_counts_nothing_in_a_median() -> None:
    hidden = torch.tensor([True, False, False, False, True])
    x, x0 = (torch.randn(1, 5, dtype=DOUBLE) for _ in range(2))
    got = explained(lambda r: torch.nanmedian(r.masked_fill(hidden, torch.nan)), x, x0)[0, :, 0]
    expected = explained(torch.median, x[:, 1:4], x0[:, 1:4])[0, :, 0]
    np.testing.assert_allclose(got, [0, *expected, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "mixes",
    [lambda x: x / x.norm(), lambda x: x - x.max(), lambda x: F.batch_norm(x, None, None, training=True)],
    ids=["norm", "max", "batch_norm"],
)
def test_what_goes_over_all_rows_is_refused(mixes: Callable[[Tensor], Tensor]) -> None:
    class Mixing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return mixes(x) if x.sum() < 1e300 else x

    x, x0 = (torch.randn(2, 3, dtype=DOUBLE) for _ in range(2))
    with pytest.raises(RewriteError, match="the rows of a batch influence each other"):
        DeepExplainer(Mixing(), x0, progress=False).shap_values(x)


def test_attention_whose_weights_vary_is_additive() -> None:
    def of_row(r: Tensor) -> Tensor:
        x, weight = r[:8].reshape(4, 2), r[8:20].reshape(6, 2)
        zeros = torch.zeros(6, dtype=DOUBLE)
        given = (None, None, True, 0.0, r[20:24].reshape(2, 2), zeros[:2])
        return F.multi_head_attention_forward(x, x, x, 2, 1, weight, zeros, *given)[0]

    x, x0 = (torch.randn(2, 24, dtype=DOUBLE) for _ in range(2))
    model = RowByRow(of_row)
    change = (model(x) - model(x0).mean(0)).numpy()
    np.testing.assert_allclose(explained(of_row, x, x0).sum(1), change, rtol=0, atol=1e-10)
