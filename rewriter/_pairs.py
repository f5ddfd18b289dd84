"""Bind the rules to a model whose batch holds samples in its first half and references in its second.

That is how both shap and captum run a model; the rules take effect in the backward pass. What a rule
needs travels with the autograd graph, so nothing is kept on modules and an atom may be called any
number of times.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from passes.atoms import Atom
from passes.errors import RewriteError
from passes.layout import SequenceBegin
from rewriter._multipliers import Operands
from rewriter._pulls import BoundRule, rule_of


@contextmanager
def bound_rules(model: nn.Module) -> Iterator[None]:
    """Make the atoms of ``model`` propagate multipliers instead of gradients.

    Example:
        >>> from passes.atoms import Mul
        >>> a = torch.tensor([3.0, 1.0], requires_grad=True)
        >>> b = torch.tensor([2.0, 0.0], requires_grad=True)
        >>> mul = Mul()
        >>> with bound_rules(mul):
        ...     mul(a, b).sum().backward()
        >>> a.grad, b.grad
        (tensor([1., 1.]), tensor([2., 2.]))

    """
    handles = [
        module.register_forward_hook(_hook(rule))
        for module in model.modules()
        if isinstance(module, Atom) and (rule := rule_of(module)) is not None
    ]
    handles += [
        module.register_forward_hook(_warn_of_lengths)
        for module in model.modules()
        if isinstance(module, SequenceBegin)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(rule: BoundRule) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
    def replace_gradient(module: nn.Module, operands: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not (torch.is_grad_enabled() and output.requires_grad):
            return None
        if not all(isinstance(operand, Tensor) for operand in operands):
            # What is not a tensor is the same for all rows, and what is left of a product with it is linear.
            return None
        if output.shape[0] % 2:
            raise RewriteError(
                f"{type(module).__name__}: expected samples and as many references along dimension 0, got "
                f"shape {tuple(output.shape)}; the model must keep the batch in dimension 0"
            )
        result: Tensor = _PairRule.apply(rule, output.detach(), *operands)  # type: ignore[no-untyped-call]
        return result

    return replace_gradient


def _warn_of_lengths(module: nn.Module, _: Any, begun: tuple[Any, ...]) -> None:
    lengths = begun[2].lengths
    if lengths is not None and len(lengths) % 2 == 0 and not torch.equal(*lengths.chunk(2)):
        warnings.warn(
            f"{module.name}: a sample and its reference differ in length; the length is an input without "
            "attribution, so the attributions do not add up",
            stacklevel=2,
        )


class _PairRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rule: BoundRule, output: Tensor, *operands: Tensor) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(output, *operands)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        output, *operands = ctx.saved_tensors
        rows = output.shape[0]
        wide = [each.expand(output.shape) for each in operands] if ctx.rule.elementwise else operands
        halves = [_halves(operand, rows) for operand in wide]
        x: Operands = tuple(sample for sample, _ in halves)
        x0: Operands = tuple(reference for _, reference in halves)
        y, y0 = _halves(output, rows)
        # Multipliers of the two halves are those of two outputs of the same pairs.
        d = torch.stack(_halves(grad, rows))
        pulled = ctx.rule.pull(x, x0, y, y0, d)
        grads = (
            _joined(each, operand).sum_to_size(operand.shape)
            for each, operand in zip(pulled, operands, strict=True)
        )
        return None, None, *grads


def _halves(tensor: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Split into samples and references, (1, rows / 2, *); what has no rows is the same for both."""
    if tensor.dim() == 0 or tensor.shape[0] != rows:
        return tensor.unsqueeze(0), tensor.unsqueeze(0)
    sample, reference = tensor.chunk(2)
    return sample.unsqueeze(0), reference.unsqueeze(0)


def _joined(pulled: Tensor, operand: Tensor) -> Tensor:
    """Put what came for the halves, (2, 1, *), in the order of the batch."""
    both = pulled.squeeze(1)
    return both.sum(0) if both.shape[1:] == operand.shape else both.flatten(0, 1)
