"""The product rule for functions that are linear in each of two operands, and for products of many."""

from __future__ import annotations

import string

import torch
from torch import Tensor

from passes.operations.contract import Operands
from passes.operations.products.bilinear import Bilinear
from passes.operations.products.running_products import RunningProduct


def product_multipliers(x: Operands, x0: Operands, y: Tensor, y0: Tensor) -> Operands:
    """Split a product of two operands: each is multiplied by the mean of the other.

    Example:
        >>> one, two, three = torch.ones(1), torch.ones(1) + 1, torch.ones(1) + 2
        >>> product_multipliers((three, two), (one, two), 3 * two, two)
        (tensor([2.]), tensor([2.]))

    """
    # A mask may be one of them: the sum of two booleans would be a boolean.
    (a, b), (a0, b0) = ((side[0].to(y.dtype), side[1].to(y.dtype)) for side in (x, x0))
    # Halves first: one of both sides has fewer rows, and a half is exact.
    return b / 2 + b0 / 2, a / 2 + a0 / 2


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
    a, b = ((s + r).div_(2) for s, r in zip(x, x0, strict=True))
    equation = atom.equation(a.dim() - 1, b.dim() - 1)
    # Gradients of complex numbers are conjugates, which is what torch's own transposition gives, too.
    pulled = equation and _by_equation(equation, a.conj(), b.conj(), d)
    return pulled or _by_transposition(atom, a, b, d)


def _by_equation(equation: str, a: Tensor, b: Tensor, d: Tensor) -> Operands | None:
    """Write the transposed products as Einstein sums, too; None where that takes more than one."""
    left, result = equation.split("->")
    of_a, of_b = left.split(",")
    for own, other in ((of_a, of_b), (of_b, of_a)):
        if len(set(own)) < len(own) or not set(own) <= set(result) | set(other):
            return None
    outputs, pairs = [letter for letter in string.ascii_letters if letter not in equation][:2]
    pull_a = f"{outputs}{pairs}{result},{pairs}{of_b}->{outputs}{pairs}{of_a}"
    pull_b = f"{outputs}{pairs}{result},{pairs}{of_a}->{outputs}{pairs}{of_b}"
    d_a, d_b = torch.einsum(pull_a, d, b), torch.einsum(pull_b, d, a)
    # An operand of size 1 was broadcast.
    return d_a.sum_to_size(*d.shape[:2], *a.shape[1:]), d_b.sum_to_size(*d.shape[:2], *b.shape[1:])


def _by_transposition(atom: Bilinear, a: Tensor, b: Tensor, d: Tensor) -> Operands:
    pairs = d.shape[1]
    a, b = (each.expand(pairs, *each.shape[1:]) for each in (a, b))

    # Torch's own linear map does not run on one vector of many.
    forward = _linear_map if atom.function == "linear" else atom.forward

    def of_one(a: Tensor, b: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        pulled: tuple[Tensor, Tensor] = torch.func.vjp(forward, a, b)[1](d)
        return pulled

    of_pairs = torch.func.vmap(of_one)
    pulled: tuple[Tensor, Tensor] = torch.func.vmap(of_pairs, in_dims=(None, None, 0))(a, b, d)
    return pulled


def _linear_map(x: Tensor, weight: Tensor) -> Tensor:
    return torch.matmul(x, weight.mT if weight.dim() > 1 else weight)


def running_product_pull(
    atom: RunningProduct, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor
) -> Operands:
    """Take multipliers through ``p_k = p_(k-1) x_k``, a product of two operands at each element.

    Arguments are those of :func:`bilinear_pull`; nothing is divided, so elements may be zero.

    Example:
        >>> x, d = torch.tensor([[[2.0, 3.0]]]), torch.ones(1, 1, 1)
        >>> running_product_pull(RunningProduct(-1), (x,), (0 * x,), d[0], d[0], d)
        (tensor([[[[1.5000, 1.0000]]]]),)

    """
    dim = atom.dim if atom.dim < 0 else atom.dim - (x[0].dim() - 1)
    a, a0 = (side[0].movedim(dim, -1) for side in (x, x0))
    d = d.unsqueeze(dim) if not (atom.cumulative or atom.keepdim) else d
    d = d.movedim(dim, -1)
    mean = (a + a0) / 2
    so_far = (a.cumprod(-1) + a0.cumprod(-1)) / 2
    multipliers = []
    through = torch.zeros_like(d[..., -1])
    for k in reversed(range(a.shape[-1])):
        if atom.cumulative or k == a.shape[-1] - 1:
            through = through + (d[..., k] if atom.cumulative else d[..., 0])
        multipliers.append(through * so_far[..., k - 1] if k else through)
        through = through * mean[..., k]
    return (torch.stack(multipliers[::-1], -1).movedim(-1, dim),)
