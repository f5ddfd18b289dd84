"""Which rule belongs to a module: the one lookup of all explainers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from passes.errors import RewriteError
from passes.leaves import Mul
from passes.operations.elementwise.atom import Elementwise, RandomLeakyReLU
from passes.operations.elementwise.chord import rule_for
from passes.operations.elementwise.sigmoid_tanh_relu import RULES, Operands, Rule
from passes.operations.maxima.extrema import Extremum
from passes.operations.maxima.pooling import AdaptiveMaxPool, MaxPool
from passes.operations.maxima.pooling_rule import pool_pull
from passes.operations.maxima.rule import extremum_pull
from passes.operations.norms.rule import normalize_pull, standardize_pull, variance_pull, vector_norm_pull
from passes.operations.norms.standardize import Standardize
from passes.operations.norms.variance import Variance
from passes.operations.norms.vector_norms import Normalize, VectorNorm
from passes.operations.pairwise.atom import Pairwise
from passes.operations.pairwise.rule import pairwise_rule_for
from passes.operations.products.bilinear import Bilinear
from passes.operations.products.rule import bilinear_pull, running_product_pull
from passes.operations.products.running_products import RunningProduct
from passes.operations.softmax.atoms import LogSoftmaxAtom, LogSumExp, SoftmaxAtom
from passes.operations.softmax.rule import log_softmax_pull, logsumexp_pull, softmax_pull

#: Takes the operands of samples and references, (n or 1, *operand shape), what the module made of them,
#: (n or 1, *output shape), and multipliers of its output, (K, n, *output shape), to those of its
#: operands, (K, n, *operand shape).
Pull = Callable[[Operands, Operands, Tensor, Tensor, Tensor], Operands]


@dataclass(frozen=True)
class BoundRule:
    """The rule of one module.

    Args:
        pull: what it does to multipliers.
        elementwise: operands are to be brought to the shape of the output first.

    """

    pull: Pull
    elementwise: bool


def elementwise(rule: Rule) -> BoundRule:
    """Make a rule of the table act on multipliers."""
    return BoundRule(partial(_multiply, rule), elementwise=True)


def _multiply(rule: Rule, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor) -> Operands:
    # Torch's gradients of complex numbers are conjugates: a change is the real part of conj(d) * delta.
    return tuple(d * multiplier.conj() for multiplier in rule(x, x0, y, y0))


def _guarded(
    atom: nn.Module, pull: Pull, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor
) -> Operands:
    """Refuse complex numbers, of which most rules are not true."""
    function = getattr(atom, "function", "")
    known = isinstance(atom, _COMPLEX) or function in ("abs", "div")
    if not known and any(each.is_complex() for each in (*x, y)):
        raise RewriteError(f"{function or type(atom).__name__}: has no rule for complex numbers")
    return pull(x, x0, y, y0, d)


#: Products are linear in each operand, complex or not.
_COMPLEX = (Mul, Bilinear)
#: Rules that need to know the options of their atom.
BOUND: Mapping[type[nn.Module], Callable[[Any], BoundRule]] = {
    Elementwise: lambda atom: elementwise(rule_for(atom)),
    RandomLeakyReLU: lambda atom: elementwise(rule_for(atom.in_evaluation())),
    Pairwise: lambda atom: elementwise(pairwise_rule_for(atom)),
    RunningProduct: lambda atom: BoundRule(partial(running_product_pull, atom), elementwise=False),
    Bilinear: lambda atom: BoundRule(partial(bilinear_pull, atom), elementwise=False),
    Extremum: lambda atom: BoundRule(partial(extremum_pull, atom), elementwise=False),
    MaxPool: lambda atom: BoundRule(partial(pool_pull, atom), elementwise=False),
    AdaptiveMaxPool: lambda atom: BoundRule(partial(pool_pull, atom), elementwise=False),
    SoftmaxAtom: lambda atom: BoundRule(partial(softmax_pull, atom), elementwise=False),
    LogSoftmaxAtom: lambda atom: BoundRule(partial(log_softmax_pull, atom), elementwise=False),
    LogSumExp: lambda atom: BoundRule(partial(logsumexp_pull, atom), elementwise=False),
    Standardize: lambda atom: BoundRule(partial(standardize_pull, atom), elementwise=False),
    Variance: lambda atom: BoundRule(partial(variance_pull, atom), elementwise=False),
    VectorNorm: lambda atom: BoundRule(partial(vector_norm_pull, atom), elementwise=False),
    Normalize: lambda atom: BoundRule(partial(normalize_pull, atom), elementwise=False),
}


def rule_of(module: nn.Module) -> BoundRule | None:
    """Return the rule for an atom of a known type, else None.

    Example:
        >>> rule_of(nn.Linear(1, 1)) is None, rule_of(Elementwise("exp")).elementwise
        (True, True)

    """
    # An atom that answers isinstance for one of torch's modules derives from both.
    for kind in type(module).__mro__:
        if kind in RULES or kind in BOUND:
            rule = elementwise(RULES[kind]) if kind in RULES else BOUND[kind](module)
            return replace(rule, pull=partial(_guarded, module, rule.pull))
    return None


def as_result(operand: Tensor, result: Tensor) -> Tensor:
    """Bring an operand to the dtype of the result, unless that would cut a complex number in two.

    Example:
        >>> import torch
        >>> as_result(torch.tensor([1]), torch.tensor([0.5])), as_result(torch.tensor([1j]), torch.ones(1))
        (tensor([1.]), tensor([0.+1.j]))

    """
    return operand if operand.is_complex() or result.is_complex() else operand.to(result.dtype)


def part_for(operand: Tensor, pulled: Tensor) -> Tensor:
    """Return multipliers of an operand: those of a real one are real.

    Example:
        >>> import torch
        >>> part_for(torch.ones(1), torch.tensor([2 + 1j]))
        tensor([2.])

    """
    return pulled.real if pulled.is_complex() and not operand.is_complex() else pulled
