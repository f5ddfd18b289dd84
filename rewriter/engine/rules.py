"""Rules as multipliers are transported: by autograd, by linked modules, by sweeps derived from a graph.

The C form of the sweeps of LSTM and GRU has the rules of their atoms written in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from passes.errors import RewriteError
from passes.operations.contract import BoundRule, Operands


def pull(
    rule: BoundRule,
    pairs: Sequence[tuple[Tensor, Tensor]],
    output: tuple[Tensor, Tensor],
    d: Tensor,
    operands: Sequence[Tensor],
) -> Operands:
    """Take multipliers of an atom's output to those of its operands.

    Args:
        rule: the atom's.
        pairs: each operand of samples and of references, (n or 1, *operand shape), brought to the rank of the
            output by :func:`of_rank` if the rule is elementwise.
        output: what the atom made of both, (n or 1, *output shape).
        d: (K, n, *output shape).
        operands: those of the samples, without a dimension of pairs.

    Returns:
        (K, n, *operand shape) each.

    Example:
        >>> from passes.leaves import Mul
        >>> from passes.operations.table import rule_of
        >>> a, b = torch.ones(3), torch.tensor(2.0)
        >>> pairs = [(a[None], 0 * a[None]), (of_rank(b, 1)[None], of_rank(b, 1)[None])]
        >>> pull(rule_of(Mul()), pairs, (2 * a[None], 0 * a[None]), torch.ones(1, 1, 3), (a, b))
        (tensor([[[2., 2., 2.]]]), tensor([[1.5000]]))

    """
    x, x0 = _sides(pairs, d.shape[1:] if rule.elementwise else None)
    pulled = rule.pull(x, x0, *output, d)
    return tuple(
        _fitted(part_for(operand, each), operand) for each, operand in zip(pulled, operands, strict=True)
    )


def multipliers_of(
    rule: BoundRule, pairs: Sequence[tuple[Tensor, Tensor]], output: tuple[Tensor, Tensor]
) -> Operands:
    """Return the multipliers of an elementwise atom's operands, to be taken times those of its output.

    Args:
        rule: the atom's.
        pairs: each operand of samples and of references, in shapes that broadcast.
        output: what the atom made of both.

    Example:
        >>> from passes.leaves import Mul
        >>> from passes.operations.table import rule_of
        >>> a, b = torch.ones(2, 1), torch.full((3,), 2.0)
        >>> of_a, of_b = multipliers_of(rule_of(Mul()), [(a, 0 * a), (b, b)], (a * b, 0 * a * b))
        >>> of_a.shape, of_b[0, 0].item()
        (torch.Size([2, 3]), 0.5)

    """
    assert rule.multipliers is not None, "the atom mixes elements"
    shape = torch.broadcast_shapes(*(each.shape for each in output))  # type: ignore[no-untyped-call]
    return rule.multipliers(*_sides(pairs, shape), *output)


def check_call(name: str, kwargs: Mapping[str, Any], result: Any) -> None:
    """Refuse a call of an atom that no rule is of.

    Args:
        name: qualified name of the atom.
        kwargs: keyword arguments that it was given.
        result: what it returned.

    Raises:
        RewriteError: for keywords, and for anything but one tensor.

    Example:
        >>> check_call("block.act", {}, torch.zeros(1))

    """
    what = name or "the atom"
    if kwargs:
        raise RewriteError(
            f"{what}: an atom is called with {', '.join(f'{each}=' for each in kwargs)}, and its rule is of "
            "operands by position; call it with them by position, and give settings to its __init__"
        )
    if not isinstance(result, Tensor):
        raise RewriteError(
            f"{what}: an atom returned {type(result).__name__}, and its rule is of one tensor; return "
            "one, and make an atom of each other result"
        )


def named(rule: BoundRule, name: str) -> BoundRule:
    """Return a rule whose errors name the atom that has it.

    Example:
        >>> from passes.leaves import Mul
        >>> from passes.operations.table import rule_of
        >>> named(rule_of(Mul()), "gate").elementwise
        True

    """

    def pull(*args: Any) -> Operands:
        try:
            return rule.pull(*args)
        except RewriteError as error:
            raise RewriteError(f"{name}: {error}") from error

    return replace(rule, pull=pull)


def _sides(pairs: Sequence[tuple[Tensor, Tensor]], shape: Sequence[int] | None) -> tuple[Operands, Operands]:
    """Return the operands of samples and those of references, of one shape if there are several."""
    if shape is not None and len(pairs) > 1:
        pairs = [(x.expand(shape), x0.expand(shape)) for x, x0 in pairs]
    return tuple(x for x, _ in pairs), tuple(x0 for _, x0 in pairs)


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


def of_rank(x: Tensor, rank: int) -> Tensor:
    """Put missing dimensions in front, as broadcasting does."""
    return x.reshape((1,) * (rank - x.dim()) + tuple(x.shape))


def _fitted(pulled: Tensor, operand: Tensor) -> Tensor:
    """Sum multipliers over what the operand was broadcast to."""
    if pulled.shape[2:] == operand.shape:
        return pulled
    lead, shape = pulled.shape[:2], (1,) * (pulled.dim() - 2 - operand.dim()) + tuple(operand.shape)
    return pulled.sum_to_size(*lead, *shape).reshape(*lead, *operand.shape)


class PairRule(torch.autograd.Function):
    """Gives what an atom made of a batch the multipliers of its rule; partners are in the same place."""

    @staticmethod
    def forward(
        ctx: Any, rule: BoundRule, outputs: tuple[Tensor, Tensor], count: int, *operands: Tensor
    ) -> Tensor:
        """Hand on what the atom gave; not a view of anything, so that the model's code may write to it.

        Args:
            ctx: torch's.
            rule: the atom's.
            outputs: what it made of the batch, and of the partners; without a history.
            count: the number of operands.
            operands: those of the batch, then those of the partners.

        """
        ctx.rule, ctx.count = rule, count
        y, y0 = outputs
        ctx.save_for_backward(y.clone(), y0, *operands)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Apply the rule; the whole batch is one pair to it."""
        (grad,) = grad_outputs
        y, y0, *both = ctx.saved_tensors
        operands, partners = both[: ctx.count], both[ctx.count :]
        if ctx.rule.elementwise:
            # One dtype, also where an operand holds integers.
            wide = [[of_rank(as_result(each, y), y.dim()) for each in side] for side in (operands, partners)]
        else:
            wide = [operands, partners]
        pairs = [(a.unsqueeze(0), b.unsqueeze(0)) for a, b in zip(*wide, strict=True)]
        pulled = pull(ctx.rule, pairs, (y.unsqueeze(0), y0.unsqueeze(0)), grad[None, None], operands)
        return None, None, None, *(each[0, 0] for each in pulled), *(None,) * ctx.count
