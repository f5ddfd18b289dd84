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
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from passes.errors import RewriteError
from passes.leaves import Atom
from passes.lowering.running_code import CallAtom, note_varying, run_quietly
from passes.operations.contract import BoundRule
from passes.operations.table import rule_of
from passes.recurrent.layout import SequenceBegin
from passes.user_code.hooks import replaced_forwards
from rewriter.adapters.batch_axis import Partners, exchanged
from rewriter.compiler.islands import islands_of, lowered_islands, may_write, run_islands
from rewriter.engine.rules import PairRule, check_call, named


@contextmanager
def bound_rules(model: nn.Module) -> Iterator[None]:
    """Make the atoms of ``model`` propagate multipliers instead of gradients.

    Each call of the model runs a copy of it on the exchanged batch first
    (:mod:`rewriter.adapters.batch_axis`). An atom that is called by itself has its batch in
    dimension 0. Some explainers call others: what is bound already stays so.

    Example:
        >>> from passes.leaves import Mul
        >>> a = torch.tensor([3.0, 1.0], requires_grad=True)
        >>> b = torch.tensor([2.0, 0.0], requires_grad=True)
        >>> mul = Mul()
        >>> with bound_rules(mul):
        ...     mul(a, b).sum().backward()
        >>> a.grad, b.grad
        (tensor([1., 1.]), tensor([2., 2.]))

    """
    if isinstance(getattr(model.__dict__.get("forward"), "__self__", None), _Binding):
        yield
        return
    binding = _Binding(model)
    handles = []
    for name, module in model.named_modules():
        hook = binding.hook(name, module)
        if hook is not None:
            handles.append(module.register_forward_hook(hook))
            if isinstance(module, Atom) and rule_of(module) is not None:
                handles.append(
                    module.register_forward_hook(partial(_check, name), with_kwargs=True, prepend=True)
                )
    try:
        with replaced_forwards(binding.forwards()):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Binding:
    """The rules of a model, and the run under way."""

    def __init__(self, model: nn.Module) -> None:
        self.root = model
        self.partners = Partners(model)
        self.plain = model.forward
        self.islands = islands_of(model)
        self.writes = may_write(model)
        # What other threads run meanwhile is not what is explained.
        self.thread = threading.get_ident()
        self.running = False
        # Of the batch of the run under way, if its halves can be exchanged.
        self.even = False

    def forwards(self) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
        """Yield what runs in another way while the rules are bound, each module once or from inside out."""
        for module in self.root.modules():
            if isinstance(module, Atom) and module is not self.root:
                yield module, partial(run_quietly, module.forward)
        yield from lowered_islands(self.root, self.islands, self.calling)
        self.plain = self.root.forward
        yield self.root, self.forward

    def calling(self, island: str) -> CallAtom:
        """Return what calls an atom in the place of a call in the code of an island."""

        def call(name: str, atom: Atom, operands: tuple[Any, ...]) -> Any:
            output = type(atom).forward(atom, *operands)
            rule = rule_of(atom)
            if rule is None:
                self.skip(f"{island}.{name}".lstrip("."))()
                return output
            replaced = self.replace_gradient(f"{island}.{name}".lstrip("."), rule)(atom, operands, output)
            return output if replaced is None else replaced

        return call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, after its copy on the exchanged batch."""
        if self.elsewhere() or self.running or isinstance(self.root, Atom) or not torch.is_grad_enabled():
            return self.plain(*args, **kwargs)
        self.even = self.partners.run(args, kwargs)
        if self.islands:
            # Their code may write to its arguments, and torch lets nobody write to a leaf.
            args, kwargs = pytree.tree_map(_not_leaf, (args, kwargs))
        self.running = True
        try:
            result = run_islands(self.islands, self.plain, *args, **kwargs)
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
            if self.writes:
                # Into the operands, perhaps, before the backward pass.
                operands = tuple(each.clone() for each in operands)
            operands0, output0 = recorded
            if output0.shape != output.shape:
                raise RewriteError(
                    f"{name or type(module).__name__}: gave shape {tuple(output.shape)}, and "
                    f"{tuple(output0.shape)} with samples and references exchanged; a sample and its "
                    "reference must have one shape: choose by torch.where(condition, a, b)"
                )
            of_atom = named(rule, name or type(module).__name__)
            result: Tensor = PairRule.apply(  # type: ignore[no-untyped-call]
                of_atom, (output.detach(), output0), len(operands), *operands, *operands0
            )
            note_varying(result)
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


def _check(name: str, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    check_call(name or type(module).__name__, kwargs, output)


def _not_leaf(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.requires_grad else value


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
