"""Cut what a layer takes, or gives, off from what comes before, as what is explained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from passes.errors import RewriteError
from passes.lowering.running_code import note_varying
from passes.user_code.structure import map_tensors, tensors_in
from rewriter.engine.problem import Inputs, Target
from rewriter.engine.tape import Tape, current, running
from rewriter.explainer.batch_places import Place, places_of, rows_back, rows_first
from rewriter.explainer.result import Explained

Side = Literal["input", "output"]
# Rows that run at once.
_ROWS = 16
_PACKED = (
    "; to explain what is packed, or a state, send it through a module of its own, self.part = "
    "nn.Identity(), and explain (model, model.part)"
)


class Cut:
    """Makes leaves of the attribution of what a layer takes, or gives.

    Args:
        name: of the layer in the user's model, ``""`` for the model.
        side: which of the two.

    Example:
        >>> cut = Cut("fc", "input")
        >>> x = torch.ones(2, 3)
        >>> cut((x,))[0] is x
        True

    """

    def __init__(self, name: str, side: Side) -> None:
        self.name = name or "the model itself"
        self.side = side
        # Of each tensor, None for one that is the same for all rows.
        self.places: list[Place | None] = []

    def __call__(self, values: Any) -> Any:
        """Note the tensors of a run on references; give back leaves in their place in a run on samples.

        Raises:
            RewriteError: if there is nothing to explain, or the layer ran before.

        """
        tape = current()
        if tape is None:
            return values
        tensors = self._tensors(values)
        if tape.pairing is None:
            if tape.inputs:
                raise RewriteError(
                    f"{self.name}: runs more than once, and it cannot be told which of the calls is meant; "
                    "explain a layer that runs once, or give each call a module of its own"
                )
            # Copies: what works in place is about to overwrite them.
            tape.inputs = [each.detach().clone() for each in tensors]
            if tape.marked is None and not tape.given:
                return values
        if tape.given:
            marked = self._given(tape, tensors)
        elif tape.pairing is None:
            marked = [self._marked(*each, tape.mark) for each in zip(tensors, self.places, strict=False)]
        else:
            marked = self._leaves(tape, tensors)
        note_varying(marked)
        found = {id(old): new for old, new in zip(tensors, marked, strict=True)}
        return map_tensors(lambda each: found.get(id(each), each), values)

    def _tensors(self, values: Any) -> list[Tensor]:
        """Return what may be explained, each once: of q, k and v that are one tensor there is one."""
        if any(map(_is_packed, pytree.tree_leaves(values, is_leaf=_is_packed))):
            raise self._nothing("a PackedSequence")
        floats = {id(each): each for each in tensors_in(values) if each.is_floating_point()}
        if not floats:
            kinds = {str(each.dtype) for each in tensors_in(values)} or {type(values).__name__}
            raise self._nothing(f"no floating point tensor but {', '.join(sorted(kinds))}")
        return list(floats.values())

    def _nothing(self, what: str) -> RewriteError:
        verb = "takes" if self.side == "input" else "gives"
        return RewriteError(
            f"{self.name}: {verb} {what}, of which nothing can be explained; explain the layer before or "
            f"behind it, or an nn.Embedding, whose output is explained{_PACKED if 'Packed' in what else ''}"
        )

    @staticmethod
    def _marked(value: Tensor, place: Place | None, mark: float) -> Tensor:
        if place is None:
            return value
        rows = rows_first(value, place, 2).clone()
        rows[1] += mark
        # A copy, as each that a layer gets: it is told from one that something has written to.
        return rows_back(rows, place).clone()

    def _given(self, tape: Tape, tensors: list[Tensor]) -> list[Tensor]:
        given = iter(tape.given)
        # Copies, as each that a layer gets.
        return [
            value if place is None else rows_back(next(given), place).clone()
            for value, place in zip(tensors, self.places, strict=True)
        ]

    def _leaves(self, tape: Tape, tensors: list[Tensor]) -> list[Tensor]:
        pairing = tape.pairing
        assert pairing is not None
        rows, count = pairing.samples, pairing.references
        given, leaves, facing = [], [], []
        for value, value0, place in zip(tensors, tape.inputs, self.places, strict=True):
            if place is None:
                given.append(value)
                continue
            leaf = rows_first(value.detach(), place, rows).clone().requires_grad_()
            references = rows_first(value0, place, count * (rows if pairing.own else 1))
            if leaf.shape[1:] != references.shape[1:]:
                raise RewriteError(
                    f"{self.name}: {self.side} of shape {tuple(value.shape)} for {rows} samples and "
                    f"{tuple(value0.shape)} for the references; rows must have one shape: explain another "
                    "layer, or pad what it takes"
                )
            leaves.append(leaf)
            facing.append(torch.unflatten(references, 0, (count, rows if pairing.own else 1)))
            given.append(rows_back(leaf, place).clone())
        tape.leaves, tape.inputs = leaves, facing
        return given

    def measure(self, target: Target, inputs: Inputs) -> None:
        """Find out where the batch is.

        Args:
            target: with this cut in it.
            inputs: some rows of the model's inputs.

        Raises:
            RewriteError: if the layer is not reached, or its rows cannot be told apart.

        """
        self.places = []

        def take(rows: Inputs) -> Inputs:
            tensors = taken(target, rows)
            if not tensors:
                raise RewriteError(
                    f"{self.name}: is not reached, so there is nothing to explain; explain a layer that the "
                    "model calls when it runs"
                )
            return tensors

        found = places_of(
            take, inputs, f"{self.name}: the rows of the batch cannot be told in its {self.side}"
        )
        if not any(found):
            raise self._nothing("what is the same for all rows")
        self.places = found

    @property
    def count(self) -> int:
        """How many tensors are explained."""
        return sum(place is not None for place in self.places)

    def rows_of(self, target: Target, inputs: Inputs) -> Inputs:
        """Return what the layer takes, or gives, for some inputs of the model, batch first.

        Args:
            target: with this cut in it.
            inputs: of the model.

        """
        parts = []
        for rows in zip(*(torch.split(each, _ROWS) for each in inputs), strict=True):
            found = zip(taken(target, list(rows)), self.places, strict=True)
            parts.append([rows_first(x, place, len(rows[0])) for x, place in found if place is not None])
        return [torch.cat(each) for each in zip(*parts, strict=True)]

    def of_layer(self, done: Explained, target: Target, data: Inputs) -> Explained:
        """Leave out what goes from the inputs around the layer, which counts in sums alone.

        Args:
            done: attributions to the layer, and to the model's inputs.
            target: with this cut in it.
            data: some rows of the model's inputs.

        """
        values, multipliers, errors = (
            each[: self.count] for each in (done.values, done.multipliers, done.errors)
        )
        if not len(done.outputs):
            tail = done.values[0].shape[data[0].dim() :]
            rows = self.rows_of(target, [each[:1] for each in data])
            values = multipliers = [np.zeros((0, *each.shape[1:], *tail)) for each in rows]
        return replace(done, values=values, multipliers=multipliers, errors=errors)


def _is_packed(value: Any) -> bool:
    return isinstance(value, PackedSequence)


def taken(target: Target, inputs: Inputs) -> Inputs:
    """Return what a cut notes when the model runs on some rows."""
    tape = Tape()
    with torch.inference_mode(False), torch.no_grad(), running(tape):
        target.run([each.clone() for each in inputs])
    return tape.inputs
