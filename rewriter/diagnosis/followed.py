"""Run a model and note what flows into each of its calls, against what flows out.

What explainers do is done here, too, by the same code: calls in code without a graph are made by atoms
(:mod:`passes.lowering.running_code`), and atoms get the multipliers of their rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from passes.errors import RewriteError
from passes.lowering.coverage import why_no_rule_for_call, why_no_rule_for_module
from passes.lowering.running_code import hands_out
from passes.lowering.written import put, without_out, written_by
from passes.operations.catalogue import is_blind, operation_of
from passes.operations.operation import CUTS, FIXED
from passes.user_code.observe import Call
from passes.user_code.structure import map_tensors, numbers_in, tensors_in
from rewriter.compiler.uncovered import WITHOUT_GRADIENTS, is_covered
from rewriter.diagnosis.cuts import Cuts, pass_on
from rewriter.diagnosis.numbers import differ
from rewriter.diagnosis.recorded import (
    Explained,
    Made,
    Recorded,
    given_by,
    is_blank,
    is_floating,
    label_of,
    out_of,
    refuse_transforms,
    written_in,
)

#: Takes a call, its operands, those of the exchanged run, its result and that of the exchanged run, and
#: returns the result with the multipliers of a rule.
Ruled = Callable[[Call, tuple[Any, ...], list[Tensor], Any, list[Tensor]], Any]
#: Made by numpy or Python, from which no way leads back.
BY_NUMBERS = f"{CUTS}: its numbers come from the inputs by way of Python or numpy"


@dataclass
class Flow:
    """One call, and what it passes on.

    Args:
        call: the call.
        reason: why it needs a rule and has none, None if it is linear or has one.
        eps: of the least precise of its tensors.
        flows_in: Σ m·Δ over its operands, for each output.
        flows_out: Σ m·Δ of its result.
        size: Σ |m|·(|x| + |x0|) of all of them, of which rounding is a part.

    """

    call: Call
    reason: str | None
    eps: float = 0.0
    flows_in: list[float] = field(default_factory=list)
    flows_out: list[float] = field(default_factory=list)
    size: list[float] = field(default_factory=list)

    def begin_output(self) -> None:
        """Be ready for the backward pass of one more output."""
        for each in (self.flows_in, self.flows_out, self.size):
            each.append(0.0)

    def note(self, flows: list[float], m: Tensor, delta: Tensor, size: Tensor) -> None:
        """Add what flows through a tensor of numbers of some size, with a difference of ``delta``."""
        flows[-1] += dot(m, delta)
        self.size[-1] += float((m.detach().abs() * size).sum())
        self.eps = max(self.eps, torch.finfo(delta.dtype).eps)


# Calls that are named as those that may have read a number.
_SHOWN = 3


class Followed(Explained):
    """A run whose backward pass notes what flows in and out of each call.

    Args:
        exchanged: the run on the exchanged batch.
        sign: of Δ in the half that is explained.
        ruled: gives results of modules the multipliers of a rule.
        islands: names of the modules that run as code.
        decomposed: whether ``ruled`` has the rules of atoms.

    """

    def __init__(
        self, exchanged: Recorded, sign: int, ruled: Ruled, islands: Iterable[str] = (), *, decomposed: bool
    ) -> None:
        super().__init__(islands)
        self.exchanged = exchanged
        self.sign = sign
        self.ruled = ruled
        self.decomposed = decomposed
        self.flows: list[Flow] = []
        # Σ m·Δ of tensors that integers were looked up to.
        self.looked_up = 0.0
        self.position = 0
        self.cuts = Cuts()
        # The calls that read numbers off tensors, with what they read here and in the exchanged run.
        self.read: list[tuple[Call, list[Any], list[Any]]] = []
        # Which call made integers, and what was made of them, of numbers.
        self.makers: Any = WeakIdKeyDictionary()

    def finish(self) -> None:
        """Look at nothing more: rules run atoms, too, in the backward pass."""
        self._quiet = True

    def made(self, call: Call, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call, and have the backward pass note what flows through it."""
        refuse_transforms(call)
        other = self._counterpart(call)
        operands, operands0 = self._matched(call, tensors_in((args, kwargs)), other.taken)
        deltas = [self._delta(a, b) for a, b in zip(operands, operands0, strict=True)]
        for operand, delta, operand0 in zip(operands, deltas, operands0, strict=True):
            if not operand.requires_grad and bool(delta.any()):
                self._bring_in(call, operand, delta, operand0)
        flow = Flow(call, self._why(call, args, kwargs, other))
        # What a call makes of sizes alone is the same at both ends, and may be written to.
        varies = _varies((args, kwargs)) and not _is_blind(call, args, kwargs)
        taken = list(zip(deltas, operands0, strict=True))
        result, given = self._run(call, flow, run, args, kwargs, taken, other)
        self._note_maker(call, tensors_in((args, kwargs)), tensors_in(given))
        written = {id(each) for each in tensors_in(written_in(call, args, kwargs))}
        begun = self._left(call, flow, given, other, written, varies=varies)
        return map_tensors(lambda each: begun.get(id(each), each), result)

    def _run(
        self,
        call: Call,
        flow: Flow,
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        taken: list[tuple[Tensor, Tensor]],
        other: Made,
    ) -> tuple[Any, Any]:
        """Make a call; return what it returns, and what of that gets multipliers."""
        left = iter(taken)
        cuts = not isinstance(call.function, nn.Module) and hands_out(call.function)

        def enter(value: Any) -> Any:
            if not is_floating(value):
                return value
            delta, value0 = next(left)
            if not value.requires_grad:
                return value
            if cuts:
                # Numpy takes no tensor with a gradient.
                return value.detach()
            # What comes back to this alias comes through this call only.
            alias = value.view_as(value)
            if alias.requires_grad:
                _note(alias, flow, flow.flows_in, delta, value0)
            return alias

        entered, named = map_tensors(enter, args), map_tensors(enter, kwargs)
        out, written = out_of(call, kwargs), written_in(call, args, kwargs)
        if out is not None:
            # Torch has no gradient of what is put where it is told.
            made = run(*entered, **without_out(named))
            return put(out, made), made
        if _varies((args, kwargs)) and is_floating(written):
            return self._write(call, flow, run, (entered, named), written, taken[0])
        result = run(*entered, **named)
        if isinstance(call.function, nn.Module):
            result = self.ruled(call, entered, other.taken, result, other.given)
        handed = {id(each) for each in tensors_in((entered, named)) if is_floating(each)}
        result = map_tensors(lambda each: each.view_as(each) if id(each) in handed else each, result)
        return result, given_by(call, args, kwargs, result)

    def _write(
        self,
        call: Call,
        flow: Flow,
        run: Callable[..., Any],
        entered: tuple[Any, Any],
        written: Tensor,
        taken: tuple[Tensor, Tensor],
    ) -> tuple[Any, Tensor]:
        """Make a call that writes, out of place first: the old and the new numbers each have multipliers."""
        own = written_by(call.function, *entered)
        changed = own.clone()
        with_copy = map_tensors(lambda each: changed if each is own else each, entered)
        result = run(*with_copy[0], **with_copy[1])
        unseen = not torch.is_grad_enabled() and written.requires_grad and pass_on(written)
        written.copy_(changed)
        if unseen:
            flow.reason = WITHOUT_GRADIENTS
            # Nobody notes the write: what comes back to the new numbers goes on to the old ones.
            _note(written, flow, flow.flows_in, *taken)
        return None if result is None else written, changed if changed.requires_grad else written

    def _left(
        self, call: Call, flow: Flow, given: Any, other: Made, written: set[int], *, varies: bool
    ) -> dict[int, Tensor]:
        """Have multipliers of what a call gives noted; return what stands for tensors without any."""
        outputs, outputs0 = self._matched(call, tensors_in(given), other.given)
        begun: dict[int, Tensor] = {}
        matters = varies
        for output, output0 in zip(outputs, outputs0, strict=True):
            if is_blank(call):
                output.data.copy_(output0)
            delta = self._delta(output, output0)
            if not output.requires_grad and (varies or bool(delta.any())):
                matters = matters or not _looks_up(call)
                flow.reason = self._why_cut(flow, varies=varies)
                if id(output) in written:
                    self.cuts.begin_here(output)
                else:
                    begun[id(output)] = output = self.cuts.begin(output)
            if output.requires_grad and _looks_up(call) and not varies:
                _on_multiplier(output, partial(self._look_up, delta))
            elif output.requires_grad:
                _note(output, flow, flow.flows_out, delta, output0)
        read = numbers_in(given)
        if differ(read, other.read):
            self.read.append((call, read, other.read))
        if matters:
            self.flows.append(flow)
        return begun

    def _why_cut(self, flow: Flow, *, varies: bool) -> str | None:
        if not varies:
            return flow.reason or self._by_numbers()
        return CUTS if torch.is_grad_enabled() else WITHOUT_GRADIENTS

    def _by_numbers(self) -> str:
        readers = list(dict.fromkeys(_shown(call) for call, *_ in self.read))
        if not readers:
            return BY_NUMBERS
        return f"{BY_NUMBERS}, read by {'one of ' if len(readers) > 1 else ''}{', '.join(readers[:_SHOWN])}"

    def _bring_in(self, call: Call, operand: Tensor, delta: Tensor, operand0: Tensor) -> None:
        """Note numbers of the inputs that no call has been seen to make, where they are first used.

        What read them comes before, and is to be named if it can be told.
        """
        if not self.cuts.begin_here(operand):
            return
        if len({_shown(each) for each, *_ in self.read}) == 1:
            reader = self.read[0][0]
            flow = next((each for each in self.flows if each.call is reader), Flow(reader, None))
            flow.reason = f"{BY_NUMBERS}; first used by {_shown(call)}"
        else:
            flow = Flow(call, self._by_numbers())
        if not any(each is flow for each in self.flows):
            self.flows.append(flow)
        _note(operand, flow, flow.flows_out, delta, operand0)

    def _look_up(self, delta: Tensor, m: Tensor) -> None:
        self.looked_up += dot(m, delta)

    def _counterpart(self, call: Call) -> Made:
        calls = self.exchanged.calls
        if self.position == len(calls) or calls[self.position].label != label_of(call):
            raise _other_path(call)
        self.position += 1
        return calls[self.position - 1]

    def _matched(
        self, call: Call, tensors: list[Tensor], others: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the floating point tensors of a call, with those of the exchanged run."""
        if [each.shape for each in tensors] != [each.shape for each in others]:
            raise _other_path(call)
        floating = [is_floating(each) for each in tensors]
        return tuple(  # type: ignore[return-value]
            [each for each, wanted in zip(those, floating, strict=True) if wanted]
            for those in (tensors, others)
        )

    def _delta(self, value: Tensor, other: Tensor) -> Tensor:
        value = value.detach()
        # Infinity less infinity is no difference.
        return torch.where(value == other, torch.zeros_like(value), self.sign * (value - other))

    def _note_maker(self, call: Call, taken: list[Tensor], given: list[Tensor]) -> None:
        makers = [self.makers[each] for each in taken if each in self.makers]
        if makers or any(map(is_floating, taken)):
            for each in given:
                if not is_floating(each):
                    self.makers[each] = makers[0] if makers else call

    def _why(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], other: Made) -> str | None:
        if isinstance(call.function, nn.Module):
            covered = self.decomposed and is_covered(call.function)
            return None if covered else why_no_rule_for_module(call.function)
        reason = why_no_rule_for_call(call.function, args, kwargs, _varies, lambda _: False)
        if reason is not None:
            return reason
        numbers = numbers_in((args, kwargs))
        discrete = [
            (a, b) for a, b in zip(tensors_in((args, kwargs)), other.taken, strict=True) if not is_floating(a)
        ]
        differing = [a for a, b in discrete if differ([a], [b])]
        if differing:
            maker = next((self.makers[each] for each in differing if each in self.makers), None)
            return FIXED if maker is None else f"{FIXED}, made by {_shown(maker)}"
        if not differ(numbers, other.numbers):
            return None
        return next(
            (
                f"{FIXED}, read by {_shown(reader)}"
                for reader, read, read0 in reversed(self.read)
                if _holds(numbers, other.numbers, read, read0)
            ),
            FIXED,
        )


def _holds(numbers: list[Any], numbers0: list[Any], read: list[Any], read0: list[Any]) -> bool:
    """Whether a number of a call is, in both runs, one that was read."""
    pairs = list(zip(read, read0, strict=False))
    return any(
        differ([a], [b]) and any(not differ([a, b], list(pair)) for pair in pairs)
        for a, b in zip(numbers, numbers0, strict=False)
    )


def _shown(call: Call) -> str:
    return f"{call.operation} ({call.source})" if call.source else call.operation


def _note(tensor: Tensor, flow: Flow, flows: list[float], delta: Tensor, other: Tensor) -> None:
    """Have noted, for each output, what flows through a tensor; ``delta`` is its difference from another."""
    sizes: list[Tensor] = []

    def noted(m: Tensor) -> None:
        # The same for all outputs; not before the backward pass, in which nothing is looked at.
        if not sizes:
            sizes.append(delta.abs() + 2 * other.abs().nan_to_num(0.0, 0.0, 0.0))
        flow.note(flows, m, delta, sizes[0])

    _on_multiplier(tensor, noted)


def _on_multiplier(tensor: Tensor, note: Callable[[Tensor], None]) -> None:
    def noted(m: Tensor | None) -> None:
        # Of an output that nobody uses there is none.
        if m is not None:
            note(m)

    tensor.register_hook(noted)  # type: ignore[no-untyped-call]


def dot(m: Tensor, delta: Tensor) -> float:
    """Return Σ m·Δ."""
    product = (m.detach().conj() * delta).sum()
    return float(product.real)


def _varies(value: Any) -> bool:
    return any(each.requires_grad for each in tensors_in(value) if is_floating(each))


def _is_blind(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return not isinstance(call.function, nn.Module) and is_blind(call.function, args, kwargs, _varies)


def _looks_up(call: Call) -> bool:
    """Whether a call takes numbers out of a table."""
    if isinstance(call.function, nn.Module):
        return isinstance(call.function, nn.Embedding)
    return operation_of(call.function) is operation_of(nn.functional.embedding)


def _other_path(call: Call) -> RewriteError:
    return RewriteError(
        f"{call.name or 'the model'}: at {call.operation} {call.source} the model's code takes another path "
        "when samples and references change places, so it decides on values and cannot be followed"
    )
