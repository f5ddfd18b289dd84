"""An explanation as one function of samples and references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from passes.errors import RewriteError
from passes.user_code.hooks import set_forward
from rewriter.engine.contexts import context_inputs
from rewriter.engine.integers.origins import COMPUTED, Origins, is_integer
from rewriter.engine.problem import Inputs, Problem, Target
from rewriter.engine.tape import Outers, Pairing, Tape, running
from rewriter.explainer.target import Asked, linked_target
from rewriter.onnx.packed import PaddedWhilePacked, take_padded
from rewriter.onnx_explainer.pairs import Lookup, PairsRun, Run
from rewriter.onnx_explainer.rows import Rows


@dataclass(frozen=True)
class Explanation:
    """A function of samples and references.

    Args:
        target: what is explained.
        chosen: places of the outputs that are explained, among all of a row.
        outers: what the batch is merged with, of each operation; empty where that is nothing.
        contexts: inputs beside what is explained, such as lengths.
        places: of each lookup, the places of an input that is looked up; see :func:`places_of_tokens`.
        count: the number of the model's inputs; references come behind the samples.

    """

    target: Target
    chosen: Tensor
    outers: list[Outers]
    contexts: Sequence[int]
    places: Sequence[tuple[int, Tensor | None]]
    count: int

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Return the prediction, the values of each input, and the base value."""
        samples = list(given[: self.count])
        references = list(given[self.count :])
        with torch.no_grad():
            faced = self._faced(samples, references)
            pairing = Pairing(
                samples[0].shape[0], references[0].shape[0], bool(self.contexts), end=references[0].shape[0]
            )
            rows = Rows(pairing, len(self.chosen))
            ran, ran0 = Run(), Run()
            base = self._run(faced, ran0)
            own_context = self._run(references, Run()) if self.contexts else base
            prediction = self._run(samples, ran)
        values = self._values(samples, faced, PairsRun(ran, ran0, rows, self.outers))
        if self.contexts:
            effect = torch.unflatten(_flat(base), 0, (pairing.references, -1))
            effect = effect - _flat(own_context).unsqueeze(1)
            self._add_contexts(values, samples, references, effect[:, :, self.chosen])
        shaped = [
            value.movedim(0, -1).reshape(*value.shape[1:], *self._shape(prediction)) for value in values
        ]
        return prediction, *shaped, own_context.mean(0)

    def _shape(self, prediction: Tensor) -> tuple[int, ...]:
        """Return the shape of what is explained of a row: that of the output, if it is all of it."""
        tail = tuple(prediction.shape[1:])
        whole = torch.Size(tail).numel() == len(self.chosen)
        return tail if whole else (len(self.chosen),)

    def _run(self, inputs: Inputs, linking: Any) -> Tensor:
        with running(Tape(tokens=self.target.tokens, linking=linking)):
            return self.target.run([each.clone() for each in inputs])

    def _faced(self, samples: Inputs, references: Inputs) -> Inputs:
        """Return references as they are read in the samples' contexts, (N x M, *) then."""
        if not self.contexts:
            return references
        faced = []
        for k, (x, x0) in enumerate(zip(samples, references, strict=True)):
            shape = (x0.shape[0], x.shape[0], *x.shape[1:])
            side = x.unsqueeze(0) if k in self.contexts else x0.unsqueeze(1)
            faced.append(side.expand(shape).flatten(0, 1))
        return faced

    def _values(self, samples: Inputs, references: Inputs, run: PairsRun) -> list[Tensor]:
        """Return what is given to each input, (K, M, *)."""
        rows = run.rows
        inputs = [rows.repeated(each).detach() for each in samples]
        leaves = [each.requires_grad_() for each in inputs if each.is_floating_point()]
        with torch.enable_grad():
            flat = _flat(self._run(inputs, run))
            wanted = [*leaves, *(each.leaf for each in run.lookups)]
            eye = torch.eye(flat.shape[1], dtype=flat.dtype)[self.chosen]
            picked = eye.unsqueeze(1).expand(-1, flat.shape[0] // len(self.chosen), -1).flatten(0, 1)
            if not flat.requires_grad:
                return [_zeros(rows, each) for each in samples]
            found = torch.autograd.grad(flat, wanted, picked, allow_unused=True)
        multipliers = iter(found)
        values = []
        for x, x0 in zip(samples, references, strict=True):
            m = next(multipliers) if x.is_floating_point() else None
            if m is None:
                values.append(_zeros(rows, x))
                continue
            n = rows.pairing.references
            facing = torch.unflatten(x0, 0, (n, -1)) if self.contexts else x0.unsqueeze(1)
            values.append((torch.unflatten(m, 0, rows.lead) * (x - facing)).sum(1) / n)
        for (k, places), lookup, m in zip(self.places, run.lookups, multipliers, strict=True):
            if m is not None:
                values[k] = values[k] + _placed(rows, lookup, m, places, samples[k])
        return values

    def _add_contexts(
        self, values: list[Tensor], samples: Inputs, references: Inputs, effect: Tensor
    ) -> None:
        """Share what the samples' contexts alone do, (N, M, K), among their elements that differ."""
        differ = [
            (samples[k].unsqueeze(0) != references[k].unsqueeze(1)).flatten(2)
            if samples[k].dim() > 1
            else (samples[k].unsqueeze(0) != references[k].unsqueeze(1)).unsqueeze(2)
            for k in self.contexts
        ]
        numbers = [each.to(effect.dtype) for each in differ]
        total = sum(each.sum(2, keepdim=True) for each in numbers)
        for k, each in zip(self.contexts, numbers, strict=True):
            share = each / total.clamp(min=1.0)  # type: ignore[union-attr]
            given = (share.unsqueeze(-1) * effect.unsqueeze(2)).mean(0)
            values[k] = values[k] + given.movedim(-1, 0).reshape(len(self.chosen), *samples[k].shape)


def _flat(output: Tensor) -> Tensor:
    return output.flatten(1) if output.dim() > 1 else output.unsqueeze(1)


def _zeros(rows: Rows, x: Tensor) -> Tensor:
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    return torch.zeros(rows.outputs, *x.shape, dtype=dtype)


def _placed(rows: Rows, lookup: Lookup, m: Tensor, places: Tensor | None, like: Tensor) -> Tensor:
    """Return what is given to the tokens that were looked up, (K, M, *)."""
    found, found0 = lookup.x.found, lookup.x0.found
    pairing = rows.pairing
    x, x0 = pairing.pairs(found, found0)
    given = (rows.split(m, found.shape, 1) * (x - x0)).sum(-1).sum(1) / pairing.references
    if places is None:
        return given.reshape(rows.outputs, *like.shape)
    flat = given.flatten(2)
    zeros = flat.new_zeros(rows.outputs, like.shape[0], torch.Size(like.shape[1:]).numel())
    kept = (places >= 0).nonzero().flatten()
    return zeros.index_add(2, places[kept], flat[:, :, kept]).reshape(rows.outputs, *like.shape)


def target_to_trace(asked: Asked, code: str | None) -> Target:
    """Return what is explained, anew: a copy of the model that pads where it would pack.

    Args:
        asked: what is explained.
        code: why the model's own code is to run.

    """
    target, _ = linked_target(asked, code)
    take_padded(target.model)
    set_forward(target.model, partial(_while_padded, target.model.forward))
    return target


def _while_padded(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with PaddedWhilePacked():
        return forward(*args, **kwargs)


def contexts_of(target: Target, background: Inputs) -> list[int]:
    """Return which inputs are lengths, masks and the like."""
    chosen = torch.zeros(len(background[0]), 1, dtype=torch.int64)
    return context_inputs(target, Problem(background, background, chosen))


def places_of_tokens(target: Target, background: Inputs) -> list[tuple[int, Tensor | None]]:
    """Find which elements of a row of which input each lookup looks up.

    Returns:
        For each lookup that depends on the rows the input, and for each element of what is looked up of a
        row its place in a row of the input, negative if it is in none; None if they are the same.

    Raises:
        RewriteError: if what is looked up is computed.

    """
    if not any(map(is_integer, background)):
        return []
    rows = [torch.cat([each[:1]] * 2) for each in background]
    one, two = _lookups(target, [each[:1] for each in rows], None), None
    origins = Origins(rows)
    two = _lookups(target, rows, origins)
    integers = [(k, each[0].numel()) for k, each in enumerate(rows) if is_integer(each)]
    found: list[tuple[int, Tensor | None]] = []
    for (name, index, _), (_, index2, of_two) in zip(one, two, strict=True):
        if index.shape == index2.shape:
            continue
        if index.shape[1:] != index2.shape[1:] or bool((of_two == COMPUTED).any()):
            raise RewriteError(
                f"{name}: looks up integers that the model computes from its inputs; export the explanation "
                "of a model that takes what is looked up"
            )
        place, begin, source = of_two[0].flatten(), 0, None
        for k, size in integers:
            inside = (place >= begin) & (place < begin + 2 * size)
            if bool(inside.any()):
                if source is not None:
                    raise RewriteError(f"{name}: looks up integers of several inputs")
                source, own = k, torch.where(inside, place - begin, -1)
            begin += 2 * size
        if source is not None:
            same = own.tolist() == list(range(rows[source][0].numel()))
            found.append((source, None if same else own))
        else:
            found.append((integers[0][0], torch.full_like(place, -1)))
    return found


def _lookups(target: Target, rows: Inputs, origins: Origins | None) -> list[tuple[str, Tensor, Tensor]]:
    found: list[tuple[str, Tensor, Tensor]] = []

    class Noting(Run):
        def lookup(self, name: str, index: Tensor, looked_up: Tensor) -> Tensor:
            at = index if origins is None else origins.of(index)
            found.append((name, index.clone(), at))
            return looked_up

        def recurrence(self, name: str, sweep: Any, steps: Any, gates: Tensor, mask: Any, state: Any) -> Any:
            return type(steps).forward(steps, gates, mask, *state)

    with torch.no_grad(), running(Tape(tokens=True, linking=Noting())), origins or nullcontext():
        target.run(rows if origins is not None else [each.clone() for each in rows])
    return found
