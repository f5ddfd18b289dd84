"""The product rule for functions that are linear in each of two operands."""

from __future__ import annotations

import torch
from torch import Tensor

from passes.products import Bilinear
from rewriter._multipliers import Operands


def bilinear_pull(atom: Bilinear, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor) -> Operands:
    """Take multipliers of a product to its operands: each sees the mean of the other.

    The Shapley value of a game with two players, as for a plain product.

    Args:
        atom: the product.
        x: operands of the samples, (n or 1, *operand shape).
        x0: operands of the references, likewise.
        y: not used.
        y0: not used.
        d: (K, n, *output shape).

    """
    pairs = d.shape[1]
    a, b = ((s + r).div(2) for s, r in zip(x, x0, strict=True))
    a, b = (each.expand(pairs, *each.shape[1:]) for each in (a, b))

    def of_one(a: Tensor, b: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        pulled: tuple[Tensor, Tensor] = torch.func.vjp(atom.forward, a, b)[1](d)
        return pulled

    of_pairs = torch.func.vmap(of_one)
    pulled: tuple[Tensor, Tensor] = torch.func.vmap(of_pairs, in_dims=(None, None, 0))(a, b, d)
    return pulled
