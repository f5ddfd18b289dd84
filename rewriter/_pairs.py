"""Bind the rules to a model whose batch holds samples in its first half and references in its second.

That is how both shap and captum run a model; the rules take effect in the backward pass. What a rule
needs travels with the autograd graph, so nothing is kept on modules and an atom may be called any
number of times.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from passes.atoms import Atom
from passes.errors import RewriteError
from passes.layout import SequenceBegin
from rewriter._batch_axis import Partners, exchanged
from rewriter._pulls import BoundRule, rule_of

_MISSING = object()


@contextmanager
def bound_rules(model: nn.Module) -> Iterator[None]:
    """Make the atoms of ``model`` propagate multipliers instead of gradients.

    Each call of the model runs a copy of it on the exchanged batch first (:mod:`rewriter._batch_axis`).
    An atom that is called by itself, not by the model, has its batch in dimension 0.

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
    binding = _Binding(model)
    handles = [
        module.register_forward_hook(hook)
        for name, module in model.named_modules()
        if (hook := binding.hook(name, module)) is not None
    ]
    own = model.__dict__.get("forward", _MISSING)
    object.__setattr__(model, "forward", binding.forward)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        object.__delattr__(model, "forward")
        if own is not _MISSING:
            object.__setattr__(model, "forward", own)


class _Binding:
    """The rules of a model, and the run under way."""

    def __init__(self, model: nn.Module) -> None:
        self.root = model
        self.partners = Partners(model)
        self.plain = model.forward
        # What other threads run meanwhile is not what is explained.
        self.thread = threading.get_ident()
        self.running = False
        # Of the batch of the run under way, if its halves can be exchanged.
        self.even = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, after its copy on the exchanged batch."""
        if self.elsewhere() or self.running or isinstance(self.root, Atom) or not torch.is_grad_enabled():
            return self.plain(*args, **kwargs)
        self.even = self.partners.run(args, kwargs)
        self.running = True
        try:
            result = self.plain(*args, **kwargs)
            self.partners.finish()
        finally:
            self.running = False
            self.partners.forget()
        return result

    def elsewhere(self) -> bool:
        return threading.get_ident() != self.thread

    def hook(self, name: str, module: nn.Module) -> Callable[..., Any] | None:
        """Return what to call behind a module, None if it has no rule."""
        if isinstance(module, SequenceBegin):
            return lambda module, _, begun: self.warn_of_lengths(name, module, begun)
        rule = rule_of(module) if isinstance(module, Atom) else None
        if rule is None:
            return self.skip(name) if isinstance(module, Atom) else None
        return self.replace_gradient(name, rule)

    def skip(self, name: str) -> Callable[..., None]:
        """Keep in step with the run on the exchanged batch."""

        def pass_over(*_: Any) -> None:
            if self.running and self.even and not self.elsewhere():
                self.partners.next(name)

        return pass_over

    def replace_gradient(self, name: str, rule: BoundRule) -> Callable[..., Tensor | None]:
        """Return the hook of an atom with a rule."""

        def replace(module: nn.Module, operands: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if self.elsewhere():
                return None
            recorded = self.partners.next(name) if self.running and self.even else None
            if not (torch.is_grad_enabled() and output.requires_grad):
                return None
            if not all(isinstance(operand, Tensor) for operand in operands):
                # What is not a tensor is the same for all rows; what is left of a product with it is linear.
                return None
            if recorded is None:
                recorded = _by_itself(module, name, operands, output, called_alone=not self.running)
            operands0, output0 = recorded
            if output0.shape != output.shape:
                raise RewriteError(
                    f"{name or type(module).__name__}: gave shape {tuple(output.shape)}, and "
                    f"{tuple(output0.shape)} with samples and references exchanged; a sample and its "
                    "reference must have one shape"
                )
            result: Tensor = _PairRule.apply(  # type: ignore[no-untyped-call]
                rule, output.detach(), output0, len(operands), *operands, *operands0
            )
            return result

        return replace

    def warn_of_lengths(self, name: str, module: SequenceBegin, begun: tuple[Any, ...]) -> None:
        """Warn of packed sequences whose partner has another length."""
        if self.elsewhere() or not (self.running and self.even):
            return
        lengths, lengths0 = begun[2].lengths, self.partners.next(name)[1][2].lengths
        if lengths is not None and not torch.equal(lengths, lengths0):
            warnings.warn(
                f"{module.name}: a sample and its reference differ in length; the length is an input without "
                "attribution, so the attributions do not add up",
                stacklevel=2,
            )


def _by_itself(
    module: nn.Module, name: str, operands: tuple[Tensor, ...], output: Tensor, *, called_alone: bool
) -> tuple[tuple[Tensor, ...], Tensor]:
    rows = output.shape[0] if output.dim() else 1
    if rows % 2 or not called_alone:
        raise RewriteError(
            f"{name or type(module).__name__}: expected inputs that hold samples and as many references "
            "along dimension 0, an even number of rows; with an odd one this operation got shape "
            f"{tuple(output.shape)}"
        )
    partners = tuple(exchanged(operand, rows) for operand in operands)
    with torch.no_grad():
        return partners, type(module).forward(module, *partners)


class _PairRule(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rule: BoundRule, output: Tensor, output0: Tensor, count: int, *operands: Tensor
    ) -> Tensor:
        ctx.rule, ctx.count = rule, count
        ctx.save_for_backward(output, output0, *operands)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        y, y0, *operands = ctx.saved_tensors
        wide = [each.expand(y.shape) for each in operands] if ctx.rule.elementwise else operands
        # To a rule the whole batch is one pair: every place has its partner in the same place.
        x, x0 = (tuple(each.unsqueeze(0) for each in side) for side in (wide[: ctx.count], wide[ctx.count :]))
        pulled = ctx.rule.pull(x, x0, y.unsqueeze(0), y0.unsqueeze(0), grad[None, None])
        grads = (
            each[0, 0].sum_to_size(operand.shape)
            for each, operand in zip(pulled, operands[: ctx.count], strict=True)
        )
        return None, None, None, None, *grads, *(None,) * ctx.count
