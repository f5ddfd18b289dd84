"""Make a private copy of a model whose operations with a rule are linked, samples to references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from passes.errors import RewriteError
from passes.lowering.running_code import run_lowered, run_quietly, run_whole
from passes.operations.contract import BoundRule, Operands
from passes.operations.table import rule_of_module
from passes.recurrent.recurrence import Recurrence
from passes.user_code.clone import frozen_clone
from passes.user_code.hooks import set_forward
from passes.user_code.twin import Scripted, wrap_scripted
from rewriter.compiler.islands import islands_of, lowered_islands
from rewriter.engine.integers.lookups import link_embeddings
from rewriter.engine.loops.roll import roll_loops
from rewriter.engine.rules import as_result, check_call, of_rank, pull
from rewriter.engine.sweeps.cell_graph import NotElementwiseError
from rewriter.engine.sweeps.derived import DerivedSweep
from rewriter.engine.sweeps.linked_recurrence import GatesToBe, can_fuse, linked_recurrence
from rewriter.engine.sweeps.two_players.asked import check_swept
from rewriter.engine.tape import Outers, Pairing, RowCountError, current

Forward = Callable[..., Any]


def linked_copy(
    model: nn.Module, *, rolled: bool = False, cut: Callable[[nn.Module], None] | None = None
) -> nn.Module:
    """Copy a model, in evaluation mode; outside of a run the copy computes what the model computes.

    The copy has modules of its own and shares the parameters' storage. It is never changed again, so
    that any number of threads may run it.

    Args:
        model: decomposed.
        rolled: explain loops in its graph as the recurrences that they are; their nodes are gone then.
        cut: changes the copy before.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
        >>> copy = linked_copy(model)
        >>> x = torch.ones(1, 2)
        >>> bool((copy(x) == model(x)).all()), copy[0].weight.requires_grad, model[0].weight.requires_grad
        (True, False, True)

    """
    copy = frozen_clone(model).eval()
    wrap_scripted(copy)
    if cut is not None:
        cut(copy)
    if rolled and isinstance(copy, fx.GraphModule):
        roll_loops(copy)
    _link_recurrences(copy)
    link_embeddings(copy)
    for name, module in copy.named_modules():
        if isinstance(module, Scripted):
            set_forward(module, partial(run_whole, module.forward))
        rule = rule_of_module(module)
        if rule is not None:
            if getattr(module, "inplace", False):
                module.inplace = False
            forward = partial(run_quietly, _rule_forward, module.forward, name, rule)
            set_forward(module, forward)
    for module, lowered in lowered_islands(copy, islands_of(model), lambda name: partial(_call, name)):
        set_forward(module, partial(_island_forward, module.forward, lowered))
    return copy


def linked_function(name: str, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function of what a linked copy gives, whose operations with a rule are linked, too.

    Args:
        name: of what it is.
        function: outside of a run it is called as it is.

    Example:
        >>> linked_function("output", torch.tanh)(torch.zeros(1))
        tensor([0.])

    """
    return partial(_island_forward, function, partial(_run_function, function, name))


def _run_function(function: Callable[[Any], Any], name: str, output: Any) -> Any:
    return run_lowered(function, partial(_call, name), (output,), {})


def _island_forward(plain: Forward, lowered: Forward, *args: Any, **kwargs: Any) -> Any:
    return plain(*args, **kwargs) if current() is None else lowered(*args, **kwargs)


def _call(island: str, name: str, atom: nn.Module, operands: tuple[Any, ...]) -> Any:
    plain = partial(type(atom).forward, atom)
    rule = rule_of_module(atom)
    return (
        plain(*operands)
        if rule is None
        else _rule_forward(plain, f"{island}.{name}".lstrip("."), rule, *operands)
    )


def _link_recurrences(copy: nn.Module) -> None:
    for name, module in copy.named_modules():
        if not isinstance(module, Recurrence):
            continue
        try:
            sweep = _sweep_of(module)
        except NotElementwiseError as error:
            # Its steps are linked one by one.
            set_forward(module, partial(_stepwise_forward, module.forward, module.name or name, str(error)))
            continue
        set_forward(module, partial(run_quietly, _recurrence_forward, module.forward, name, sweep, module))
        # What feeds a recurrence feeds nothing else.
        beside = copy.get_submodule(name.rpartition(".")[0]).get_submodule(module.beside or "")
        if module.beside and can_fuse(beside):
            set_forward(beside, partial(_input_forward, beside.forward, beside))


def _sweep_of(steps: Recurrence) -> DerivedSweep:
    if not can_fuse(steps.hidden):
        raise NotElementwiseError("its hidden weights are no Linear")
    return DerivedSweep(steps.cell)


def give_gates(module: nn.Module) -> None:
    """Have a module that feeds a recurrence give what it computes, which else the sweep does in its place.

    Example:
        >>> give_gates(nn.Linear(2, 2))  # nothing feeds on it: it stays

    """
    if isinstance(module.forward, partial) and module.forward.func is _input_forward:
        set_forward(module, module.forward.args[0])


def _input_forward(plain: Forward, module: nn.Module, x: Tensor) -> Tensor | GatesToBe:
    return plain(x) if current() is None else GatesToBe(x, module)


def _recurrence_forward(
    plain: Forward,
    name: str,
    sweep: DerivedSweep,
    steps: Recurrence,
    gates: Tensor | GatesToBe,
    mask: Tensor | None,
    *state: Tensor,
) -> Any:
    tape = current()
    if tape is None:
        return plain(gates, mask, *state)
    like = gates.x if isinstance(gates, GatesToBe) else gates
    flat = like.dim() == 3 and all(each.dim() == 2 for each in state)
    if not flat or not sweep.runs_on(like):
        # Step by step: a loop whose rows have dimensions of their own, or a norm without the library.
        check_swept(steps.name or name, "its rows have several dimensions, or its cell has a norm")
        return plain(gates.made() if isinstance(gates, GatesToBe) else gates, mask, *state)
    if sweep.step.norms:
        check_swept(steps.name or name, "its cell has a norm")
    return linked_recurrence(sweep, steps, name, tape, gates, mask, state)


def _stepwise_forward(plain: Forward, name: str, reason: str, *args: Any, **kwargs: Any) -> Any:
    if current() is not None:
        check_swept(name, reason)
    return plain(*args, **kwargs)


def _rule_forward(plain: Forward, name: str, rule: BoundRule, *operands: Any, **kwargs: Any) -> Any:
    tape = current()
    if kwargs:
        check_call(name, kwargs, None)
    # What is not a tensor is the same for all rows, and what is left of a product with it is linear.
    if tape is None or not all(isinstance(operand, Tensor) for operand in operands):
        return plain(*operands)
    if not any(map(_has_slope, operands)):
        # Integers have no multipliers; what becomes of them is followed for those who look them up.
        return plain(*operands)
    with torch.no_grad():
        result = plain(*operands)
    check_call(name, kwargs, result)
    # What follows may write into the operands or the result in place. A rule takes one dtype: that of the
    # result, also where an operand holds integers.
    noted = tuple(
        operand.clone()
        if rule.keeps_integers and not _has_slope(operand)
        else as_result(operand.detach().clone(), result)
        for operand in operands
    )
    output = result.clone()
    if tape.linking is not None:
        return tape.linking.rule(RuleCall(name, rule, noted, output), result, operands)
    if tape.pairing is None:
        tape.add(name, (noted, output))
    else:
        noted0, output0 = tape.next(name, (noted, output))
        outers = tuple(tape.outer(place) for place in range(len(noted) + 1))
        link = RuleLink(name, rule, noted, noted0, output, output0, tape.pairing, outers)
        result = LinkedRule.apply(link, (result,), *operands)  # type: ignore[no-untyped-call]
    if tape.decisions is not None:
        tape.decisions.note_made(result, operands)
    return result


def _has_slope(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


class RuleCall(NamedTuple):
    """One call of an operation with a rule.

    Args:
        name: of the operation.
        rule: its rule.
        operands: as the rule takes them.
        output: what the operation made of them.

    """

    name: str
    rule: BoundRule
    operands: Operands
    output: Tensor


@dataclass
class RuleLink:
    """One call of an operation by the samples, with its counterpart by the references."""

    name: str
    rule: BoundRule
    x: Operands
    x0: Operands
    y: Tensor
    y0: Tensor
    pairing: Pairing
    outers: Outers

    def _check_rows(self) -> None:
        mixes = any(a.shape != b.shape for a, b in zip(self.x, self.x0, strict=True))
        if mixes and self.y.shape == self.y0.shape:
            raise RewriteError(
                f"{self.name}: makes shape {tuple(self.y.shape)} of samples, {tuple(self.x[0].shape)}, and "
                f"of references, {tuple(self.x0[0].shape)}: it mixes rows of the batch, which have no "
                "attributions by themselves then; name the dimensions to reduce"
            )

    def backward(self, d: Tensor) -> Operands:
        """Take multipliers (K, n, *output shape) to those of the operands, (K, n, *operand shape)."""
        self._check_rows()
        *outers, outer = self.outers
        try:
            output = self.pairing.pairs(self.y, self.y0, outer)
            pairs = [
                self.pairing.pairs(*self._aligned(a, b), each)
                for a, b, each in zip(self.x, self.x0, outers, strict=True)
            ]
            return pull(self.rule, pairs, output, d, self.x)
        except RowCountError as error:
            raise RowCountError(
                f"{self.name}: {error}; run it on all rows, and choose by torch.where(condition, a, b)"
            ) from None
        except RewriteError as error:
            raise RewriteError(f"{self.name}: {error}") from None

    def _aligned(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Bring an operand to the rank of the output, if its rule asks for that."""
        rank = self.y.dim() if self.rule.elementwise else a.dim()
        return of_rank(a, rank), of_rank(b, rank)


class LinkedRule(torch.autograd.Function):
    """Stands for an operation with a rule in the samples' autograd graph."""

    @staticmethod
    def forward(ctx: Any, link: RuleLink, result: tuple[Tensor], *operands: Tensor) -> Tensor:
        """Hand on what the operation gave; not a view of it, so that it may be written to."""
        ctx.link = link
        return result[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Apply the rule to all pairs."""
        return (None, None, *_Pull.apply(ctx.link, *grads))  # type: ignore[no-untyped-call]


class _Pull(torch.autograd.Function):
    """A rule, as an operation that vmap hands the whole batch."""

    @staticmethod
    def forward(link: RuleLink, grad: Tensor) -> Any:
        raise AssertionError("runs under vmap only")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, link: RuleLink, grad: Tensor) -> Any:
        """Apply the rule to all of vmap's batch."""
        grad = torch.unflatten(grad.movedim(in_dims[1], 0), 0, (link.pairing.outputs, link.pairing.count))
        with torch.no_grad():
            pulled = tuple(each.flatten(0, 1) for each in link.backward(grad))
        return pulled, (0,) * len(pulled)
