"""Where attributions are lost: what flows into each operation of a model against what flows out of it.

With multipliers m at every tensor of a run, an operation with operands x and result y passes

    Σ m_y · Δy − Σ m_x · Δx

on to nobody, m_x being what comes back through this operation alone. Summed over all operations that is the
additivity error of the whole model: the sum telescopes.

A batch of samples and references runs twice, the second time with both halves exchanged. The difference of
the two runs is Δ wherever the batch may be; multipliers are those of one half, and zero in the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from passes.lowering.coverage import why_no_rule_for_call, why_no_rule_for_module
from passes.lowering.written import put, without_out, written_by
from passes.operations.catalogue import is_blind, operation_of
from passes.operations.operation import CUTS
from passes.user_code.observe import Call, Observer, observe
from passes.user_code.randomness import random_state_kept
from passes.user_code.structure import map_tensors, tensors_in

#: Runs a module on operands and gives its result the multipliers of a rule.
Ruled = Callable[[Call, tuple[Any, ...], Any, Any], Any]
Half = Literal["samples", "references"]


@dataclass
class Flow:
    """One call, and what it passes on.

    Args:
        call: the call.
        reason: why it needs a rule and has none, None if it is linear.
        flows_in: Σ m·Δ over its operands, for each output.
        flows_out: Σ m·Δ of its result.

    """

    call: Call
    reason: str | None
    flows_in: list[float]
    flows_out: list[float]


class Recorded(Observer):
    """A run that keeps what each call takes and returns."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[Tensor], list[Tensor]]] = []

    def made(self, call: Call, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call."""
        taken = [each.detach().clone() for each in _floating((args, kwargs))]
        out = _out(call, kwargs)
        result = run(*args, **kwargs) if out is None else put(out, run(*args, **without_out(kwargs)))
        given = [each.detach().clone() for each in _floating(_given(call, args, kwargs, result))]
        self.calls.append((f"{call.name} {call.operation}", taken, given))
        return result


class Followed(Observer):
    """A run whose backward pass notes what flows in and out of each call.

    Args:
        exchanged: the run on the exchanged batch.
        sign: of Δ in the half that is explained.
        ruled: gives results of modules the multipliers of a rule.
        varies: whether a tensor depends on the inputs.

    """

    def __init__(self, exchanged: Recorded, sign: int, ruled: Any) -> None:
        super().__init__()
        self.exchanged = exchanged
        self.sign = sign
        self.ruled = ruled
        self.flows: list[Flow] = []
        # Σ m·Δ of tensors that integers were looked up to.
        self.looked_up = 0.0
        self.position = 0
        # Tensors whose multipliers go no further.
        self.cut: list[Tensor] = []

    def made(self, call: Call, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call, and have the backward pass note what flows through it."""
        taken0, given0 = self._counterpart(call)
        operands = _floating((args, kwargs))
        if len(operands) != len(taken0) or any(
            a.shape != b.shape for a, b in zip(operands, taken0, strict=True)
        ):
            raise _other_path(call)
        flow = Flow(call, self._why(call, args, kwargs), [], [])
        deltas = iter([self.sign * (a.detach() - b) for a, b in zip(operands, taken0, strict=True)])

        def enter(value: Any) -> Any:
            if not _is_floating(value):
                return value
            delta = next(deltas)
            if not value.requires_grad:
                return value
            # What comes back to this alias comes through this call only.
            alias = value.view_as(value)
            _on_multiplier(alias, lambda m: _note(flow.flows_in, m, delta))
            return alias

        entered, named = map_tensors(enter, args), map_tensors(enter, kwargs)
        # What a call makes of sizes alone is the same at both ends, and may be written to.
        varies = any(each.requires_grad for each in operands) and not _is_blind(call)
        out, written = _out(call, kwargs), _written(call, args, kwargs)
        if out is not None:
            # Torch has no gradient of what is put where it is told.
            made = run(*entered, **without_out(named))
            outputs, result = _floating(made), put(out, made)
        elif varies and _is_floating(written):
            # Out of place first, so that the old and the new numbers each have multipliers.
            own = written_by(call.function, entered, named)
            changed = own.clone()
            entered, named = map_tensors(lambda each: changed if each is own else each, (entered, named))
            result = run(*entered, **named)
            written.copy_(changed)
            outputs = [changed]
            result = None if result is None else written
        else:
            result = run(*entered, **named)
            if isinstance(call.function, nn.Module):
                result = self.ruled(call, entered, taken0, result, given0)
            handed = {id(each) for each in _floating((entered, named))}
            result = map_tensors(lambda each: each.view_as(each) if id(each) in handed else each, result)
            outputs = _floating(_given(call, args, kwargs, result))
        if len(outputs) != len(given0) or any(
            a.shape != b.shape for a, b in zip(outputs, given0, strict=True)
        ):
            raise _other_path(call)
        for output, given in zip(outputs, given0, strict=True):
            self._leave(call, flow, output, self.sign * (output.detach() - given), varies)
        if varies:
            self.flows.append(flow)
        return result

    def _leave(self, call: Call, flow: Flow, output: Tensor, delta: Tensor, varies: bool) -> None:
        looks_up = _looks_up(call) and not varies
        if not output.requires_grad and output.is_leaf and (varies or looks_up):
            # What was cut off gets multipliers too, which end here.
            self.cut.append(output.requires_grad_())
            if varies:
                flow.reason = CUTS
        if output.requires_grad and looks_up:
            _on_multiplier(output, lambda m: self._look_up(m, delta))
        elif output.requires_grad:
            _on_multiplier(output, lambda m: _note(flow.flows_out, m, delta))

    def _look_up(self, m: Tensor, delta: Tensor) -> None:
        self.looked_up += _dot(m, delta)

    def _counterpart(self, call: Call) -> tuple[list[Tensor], list[Tensor]]:
        calls = self.exchanged.calls
        if self.position == len(calls) or calls[self.position][0] != f"{call.name} {call.operation}":
            raise _other_path(call)
        self.position += 1
        return calls[self.position - 1][1:]

    def _why(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        if isinstance(call.function, nn.Module):
            return why_no_rule_for_module(call.function)
        return why_no_rule_for_call(call.function, args, kwargs, _varies, lambda _: False)


@dataclass
class Gaps:
    """What one sample's attributions, averaged over the references, lose.

    Args:
        flows: each call, in the order in which they ran, flows per output.
        total: for each output, the sum of the attributions less what they have to sum to.
        scale: the largest output.
        double: whether outputs are in float64.

    """

    flows: list[Flow]
    total: list[float]
    scale: float
    double: bool


def gaps_of_sample(
    model: nn.Module,
    select: Callable[[Any], Any],
    sample: list[Tensor],
    references: list[Tensor],
    ruled: Callable[..., Any],
    half: Half,
    most: int,
) -> Gaps:
    """Follow the multipliers of one sample's outputs back to its inputs.

    Args:
        model: with parameters that need no gradients.
        select: picks the tensor to explain.
        sample: one row of each input.
        references: the background.
        ruled: takes a call, its operands, those of the exchanged run, its result and that of the exchanged
            run, and returns the result with the multipliers of a rule.
        half: where multipliers are read; operations without a rule have other gradients at the sample than
            at the references.
        most: so many outputs at most, those that change most.

    """
    rows = references[0].shape[0]
    both = [torch.cat([a.expand(rows, *a.shape[1:]), b]) for a, b in zip(sample, references, strict=True)]
    exchanged = Recorded()
    with torch.enable_grad():
        observe(model, exchanged, tuple(torch.cat(each.chunk(2)[::-1]) for each in both))
        sign = 1 if half == "samples" else -1
        run = Followed(exchanged, sign, ruled)
        leaves = [each.detach().requires_grad_(each.is_floating_point()) for each in both]
        with random_state_kept():
            output = select(
                observe(model, run, tuple(each.clone() if each.requires_grad else each for each in leaves))
            )
    if not isinstance(output, Tensor) or output.dim() == 0 or output.shape[0] != 2 * rows:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise RewriteError(
            f"expected an output with the batch of {2 * rows} in dimension 0, got {got}; pass output=… to "
            "say which part of what the model returns is to be diagnosed"
        )
    flat = output.reshape(2 * rows, -1)
    change = (flat[:rows] - flat[rows:]).detach().mean(0)
    chosen = change.abs().argsort(descending=True)[:most].tolist()
    seeds = slice(None, rows) if half == "samples" else slice(rows, None)
    wanted = [each for each in leaves if each.requires_grad]
    total = []
    for k in chosen:
        for flow in run.flows:
            flow.flows_in.append(0.0)
            flow.flows_out.append(0.0)
        run.looked_up = 0.0
        given = 0.0
        if flat.requires_grad:
            seed = torch.zeros_like(flat)
            seed[seeds, k] = 1 / rows
            ends = [*wanted, *run.cut]
            found = torch.autograd.grad(flat, ends, seed, retain_graph=True, allow_unused=True)
            for leaf, m in zip(wanted, found[: len(wanted)], strict=True):
                if m is not None:
                    a, b = leaf.detach().chunk(2)
                    given += _dot(m, torch.cat([a - b, a - b]))
        total.append(given + run.looked_up - float(change[k]))
    return Gaps(run.flows, total, float(flat.detach().abs().max()), flat.dtype == torch.float64)


def _written(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a call writes numbers to, None if to nothing."""
    return None if isinstance(call.function, nn.Module) else written_by(call.function, args, kwargs)


def _out(call: Call, kwargs: dict[str, Any]) -> Any:
    """Return where a function is told to put its result."""
    return None if isinstance(call.function, nn.Module) else kwargs.get("out")


def _is_blind(call: Call) -> bool:
    return not isinstance(call.function, nn.Module) and is_blind(call.function)


def _looks_up(call: Call) -> bool:
    """Whether a call takes numbers out of a table."""
    if isinstance(call.function, nn.Module):
        return isinstance(call.function, nn.Embedding)
    return operation_of(call.function) is operation_of(nn.functional.embedding)


def _given(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    return _written(call, args, kwargs) if result is None else result


def _on_multiplier(tensor: Tensor, note: Callable[[Tensor], None]) -> None:
    tensor.register_hook(note)  # type: ignore[no-untyped-call]


def _note(flows: list[float], m: Tensor, delta: Tensor) -> None:
    flows[-1] += _dot(m, delta)


def _dot(m: Tensor, delta: Tensor) -> float:
    product = (m.detach().conj() * delta).sum()
    return float(product.real)


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _floating(value: Any) -> list[Tensor]:
    return [each for each in tensors_in(value) if _is_floating(each)]


def _varies(value: Any) -> bool:
    return any(each.requires_grad for each in _floating(value))


def _other_path(call: Call) -> RewriteError:
    return RewriteError(
        f"{call.name or 'the model'}: at {call.operation} {call.source} the model's code takes another path "
        "when samples and references change places, so it decides on values and cannot be followed"
    )
