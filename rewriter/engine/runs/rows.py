"""Run rows of the inputs: what they leave on a tape, or linked to what others left, and back."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from rewriter.engine.decisions import Decision, Decisions
from rewriter.engine.integers.origins import Origins, is_integer
from rewriter.engine.packing import PackByIndex
from rewriter.engine.problem import Inputs, Target
from rewriter.engine.tape import Pairing, Tape, running


def run_rows(target: Target, inputs: Inputs, tape: Tape, read_as: Inputs | None = None) -> Tensor:
    """Run some rows, which leave what they do on a tape; return their flattened outputs.

    Args:
        target: what is explained.
        inputs: the rows.
        tape: a new one.
        read_as: one row of each input, by whose decisions all are read; None for their own.

    """
    # Copies: the model's code may write to its inputs.
    copies = [each.clone() for each in inputs]
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        running(tape),
        deciding(target, copies, tape, read_as),
    ):
        return _run(target, copies, tape)


def deciding(target: Target, inputs: Inputs, tape: Tape, read_as: Inputs | None) -> Any:
    """Return what makes a run on some inputs decide as for one row."""
    if read_as is None:
        return nullcontext()
    rows = [row.expand(len(each), *row.shape[1:]) for row, each in zip(read_as, inputs, strict=True)]
    tape.decisions = Decisions(inputs, decided(target, rows))
    return tape.decisions


def decided(target: Target, inputs: Inputs) -> list[Decision]:
    """Return what a run of the model decides by its inputs alone, in the order in which it does.

    Args:
        target: what is explained.
        inputs: some rows.

    """
    copies = [each.clone() for each in inputs]
    noted = Decisions(copies)
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        running(Tape(tokens=target.tokens, decisions=noted)),
        noted,
    ):
        target.run(copies)
    return noted.found


def outputs_read_as(target: Target, inputs: Inputs, read_as: Inputs | None) -> Tensor:
    """Return the flattened outputs of some rows, by the decisions of one row."""
    return run_rows(target, inputs, Tape(tokens=target.tokens), read_as)


def _run(target: Target, inputs: Inputs, tape: Tape) -> Tensor:
    tape.given = inputs[: target.given]
    output = target.run(inputs[target.given :])
    return output.flatten(1) if output.dim() > 1 else output.unsqueeze(1)


def run_linked(
    target: Target, samples: Inputs, tape: Tape, read_as: Inputs | None = None
) -> tuple[Inputs, Tensor]:
    """Run samples linked to what references left; return leaves of their graph and their flattened outputs.

    Args:
        target: what is explained.
        samples: rows of each input.
        tape: of the references, with the pairing.
        read_as: one row of each input, by whose decisions all are read; None for their own.

    Raises:
        RowCountError: if samples and references took different paths through the model's code.

    """
    leaves = [_leaf(each) for each in samples]
    followed: Any = nullcontext()
    if target.tokens:
        origins = Origins(leaves)
        tape.origins = origins.of
        followed = origins if any(map(is_integer, leaves)) else followed
    with torch.inference_mode(False), torch.enable_grad(), running(tape), PackByIndex(), followed:
        # Under the caller's no_grad a view taken later would have no gradient.
        given = [leaf.clone() if leaf.requires_grad else leaf for leaf in leaves]
        with deciding(target, given, tape, read_as):
            flat = _run(target, given, tape)
    tape.check_ended()
    return leaves, flat


def _leaf(tensor: Tensor) -> Tensor:
    with torch.inference_mode(False):
        leaf = tensor.detach().clone()
        return leaf.requires_grad_() if leaf.is_floating_point() else leaf


def pulled_back(
    flat: Tensor, leaves: Inputs, chosen: Tensor, pairing: Pairing, scale: Tensor | None = None
) -> list[Tensor | None]:
    """Return the multipliers of each leaf, (K × n, M, *shape).

    Args:
        flat: outputs of the samples.
        leaves: of their graph.
        chosen: which outputs of each row, (M, K).
        pairing: of the pass.
        scale: what the multipliers of each pair are taken times, (n, M).

    """
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not wanted or not flat.requires_grad:
        return [None] * len(leaves)
    picked = flat.new_zeros(chosen.shape[1], *flat.shape)
    picked.scatter_(2, chosen.T.unsqueeze(-1).to(flat.device), 1.0)
    batch = picked.repeat_interleave(pairing.count, 0)
    if scale is not None:
        batch *= scale.to(batch).repeat(chosen.shape[1], 1).unsqueeze(-1)

    def pull(weights: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(flat, wanted, weights, retain_graph=True, materialize_grads=True)

    # Of what torch is slow at there is nothing to be told.
    torch._C._functorch._set_vmap_fallback_warning_enabled(False)  # type: ignore[attr-defined]
    found = iter(torch.func.vmap(pull)(batch))
    return [next(found) if leaf.requires_grad else None for leaf in leaves]


def is_made_of(outputs: Tensor, leaves: Inputs) -> bool:
    """Whether autograd knows of a way from any of some leaves to outputs.

    Example:
        >>> x, y = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        >>> is_made_of(x.exp() + 1, [x]), is_made_of(x.exp() + 1, [y])
        (True, False)

    """
    wanted = {id(each) for each in leaves}
    # Nodes are made anew whenever they are asked for, unless somebody has them.
    seen: set[Any] = set()
    left = [outputs.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in wanted:
            return True
        left += [each for each, _ in node.next_functions]
    return False
