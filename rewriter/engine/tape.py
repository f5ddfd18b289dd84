"""Run a model on references and on samples, and link each operation of the samples to the references'.

The model is a private copy whose operations with a rule ask :func:`current` what to do. References run
first and are recorded; then the samples run and each operation is linked to the recorded one. Both run
once per row: M + N rows. Multipliers live on pairs; they come from a backward pass through the samples'
autograd graph under ``torch.func.vmap``, in which the batch of vmap is outputs × references.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from passes.errors import RewriteError


class RowCountError(RewriteError):
    """What runs depends on the number of rows: samples and references that differ in it cannot be paired."""


@dataclass
class Pairing:
    """Which rows are paired in the backward pass that is about to run.

    Args:
        samples: rows of the run on samples, M.
        references: rows of the run on references, N; for ``own``, per sample.
        own: each sample has references of its own, (N, M) in that order.
        outputs: outputs explained at a time, K.
        begin: first reference of the pass.
        end: behind its last reference.

    """

    samples: int
    references: int
    own: bool = False
    outputs: int = 1
    begin: int = 0
    end: int = 0

    @property
    def count(self) -> int:
        """The number of references of the pass."""
        return self.end - self.begin

    @property
    def aligned(self) -> bool:
        """Whether each sample has one reference, which is in the same place in all that is run."""
        return self.own and self.references == 1

    def steps(self, x: Tensor, x0: Tensor, outer: int = 1) -> tuple[Tensor, Tensor]:
        """Bring what both runs of a recurrence kept, (T, B, F), into shapes that broadcast to pairs.

        Those are (T, n, outer, M, what the batch is merged with inside of it, F).
        """
        samples, outer = (1, 1) if self.aligned else (self.samples, outer)
        x = torch.unflatten(x, 1, (1, outer, samples, -1))
        shape = (outer, self.references, samples if self.own else 1, -1)
        return x, torch.unflatten(x0, 1, shape).movedim(2, 1)[:, self.begin : self.end]

    def pairs(self, x: Tensor, x0: Tensor, outer: int = 1) -> tuple[Tensor, Tensor]:
        """Bring a sample's and a reference's tensor into one shape (n, *shape of x), unless it broadcasts.

        Where the batch is, is seen from the sizes, which differ: M for samples, N for references. Where it
        is merged with other dimensions, ``outer`` is the size of those outside of it.

        Example:
            >>> x, x0 = Pairing(2, 3, begin=0, end=3).pairs(torch.zeros(5, 2, 4), torch.zeros(5, 3, 4))
            >>> x.shape, x0.shape
            (torch.Size([1, 5, 2, 4]), torch.Size([3, 5, 1, 4]))

        """
        batch = self._batch(x, x0)
        if batch is None:
            return x.unsqueeze(0), x0.unsqueeze(0)
        each = x.shape[batch] // self.samples
        x0 = torch.unflatten(x0, batch, (outer, self.references, -1)).movedim(batch + 1, 0)
        x0 = x0[self.begin : self.end]
        if self.own or each == 1:
            return x.unsqueeze(0), x0.flatten(batch + 1, batch + 2)
        x0 = x0.unsqueeze(batch + 2)
        shape = [*x0.shape]
        shape[batch + 2] = self.samples
        return x.unsqueeze(0), x0.expand(shape).flatten(batch + 1, batch + 3)

    def _batch(self, x: Tensor, x0: Tensor) -> int | None:
        """Return the dimension of the batch; None in a constant, or if all references are in their place."""
        if x.dim() != x0.dim():
            raise RewriteError(
                f"samples gave a tensor of shape {tuple(x.shape)} where references gave {tuple(x0.shape)}"
            )
        if x.shape == x0.shape:
            return None
        differing = [d for d in range(x.dim()) if x.shape[d] != x0.shape[d]]
        rows = self.references * (self.samples if self.own else 1)
        batch = differing[0]
        each, rest = x.shape[batch] // self.samples, x.shape[batch] % self.samples
        if len(differing) > 1 or rest or x0.shape[batch] != rows * each:
            raise RowCountError(
                f"the batch cannot be told in tensors of shape {tuple(x.shape)} for {self.samples} samples "
                f"and {tuple(x0.shape)} for {rows} references"
            )
        return batch


@dataclass
class Facing(Pairing):
    """Pairs of rows of one run with rows of another, wherever they are.

    Args:
        index: (n, M), for each row of the run on samples the rows of the other that it is paired with.

    Example:
        >>> x, x0 = torch.zeros(2, 4), torch.arange(3.0).view(3, 1).expand(3, 4)
        >>> Facing(2, 3, index=torch.tensor([[0, 2]])).pairs(x, x0)[1][..., 0]
        tensor([[0., 2.]])

    """

    index: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.long))

    @property
    def count(self) -> int:
        """The number of partners of each row."""
        return len(self.index)

    def partners(self, x0: Tensor, dim: int) -> Tensor:
        """Return the partners of each row, (n, *shape of x0 but for M in its dimension ``dim``)."""
        found = x0.index_select(dim, self.index.flatten().to(x0.device))
        return torch.unflatten(found, dim, tuple(self.index.shape)).movedim(dim, 0)

    def steps(self, x: Tensor, x0: Tensor, outer: int = 1) -> tuple[Tensor, Tensor]:
        """See the base class."""
        x = torch.unflatten(x, 1, (1, outer, self.samples, -1))
        return x, self.partners(torch.unflatten(x0, 1, (outer, self.references, -1)), 2).movedim(0, 1)

    def pairs(self, x: Tensor, x0: Tensor, outer: int = 1) -> tuple[Tensor, Tensor]:
        """See the base class; both runs have different numbers of rows."""
        batch = self._batch(x, x0)
        if batch is None:
            return x.unsqueeze(0), x0.unsqueeze(0)
        x0 = torch.unflatten(x0, batch, (outer, self.references, -1))
        return x.unsqueeze(0), self.partners(x0, batch + 1).flatten(batch + 1, batch + 3)


#: For each tensor that an operation left, the size of what is merged with the batch outside of it.
Outers = tuple[int, ...]


@dataclass
class Tape:
    """What the operations of one run on references left, in the order in which they ran.

    Args:
        pairing: None while the references run.
        entries: name of each operation and what it left.
        position: of the next one for the samples.
        inputs: what a layer took, or gave, of the references, where that is asked for; once the samples have
            run, facing them.
        given: what the layer gets in place of that, batch first; empty where it gets its own.
        leaves: likewise of the samples, batch first, made leaves of their autograd graph.
        tokens: integers are explained where an embedding looks them up.
        lookups: what the samples looked up, with what the references did.
        indices: what the references looked up.
        outers: of each operation; empty where all are 1.
        marked: shapes of the indices in a run of more rows, where the second of two is marked; else None.
        mark: what is added to it.
        decisions: notes what the run decides by its inputs alone.
        fits: whether what an operation, by its place, leaves has a part for each row; None if that is not
            asked.
        origins: tells which elements of the samples' inputs integers are.
        linking: takes the place of the engine's own links, for who writes the whole explanation down.

    """

    pairing: Pairing | None = None
    entries: list[tuple[str, Any]] = field(default_factory=list)
    position: int = 0
    inputs: list[Tensor] = field(default_factory=list)
    given: list[Tensor] = field(default_factory=list)
    leaves: list[Tensor] = field(default_factory=list)
    tokens: bool = False
    lookups: list[Any] = field(default_factory=list)
    indices: list[Tensor] = field(default_factory=list)
    outers: list[Outers] = field(default_factory=list)
    marked: list[torch.Size] | None = None
    mark: float = 0.0
    fits: Callable[[int, Any], bool] | None = None
    origins: Callable[[Tensor], Tensor] | None = None
    decisions: Any = None
    linking: Any = None

    def add(self, name: str, entry: Any) -> None:
        """Note one operation of the references' run.

        Raises:
            RowCountError: if it ran on some of the rows.

        """
        self._check_rows(name, len(self.entries), entry)
        self.entries.append((name, entry))

    def next(self, name: str, entry: Any) -> Any:
        """Return the references' counterpart of the operation that runs now.

        Args:
            name: of the operation.
            entry: what it leaves of the samples.

        Raises:
            RowCountError: if the samples took another path through the model's code, or it ran on some of
                the rows.

        """
        if self.position == len(self.entries) or self.entries[self.position][0] != name:
            raise RowCountError(
                f"{name}: the model's code took another path for the samples than for the references; "
                "both must run the same operations: choose by torch.where(condition, a, b), not by if"
            )
        self._check_rows(name, self.position, entry)
        self.position += 1
        return self.entries[self.position - 1][1]

    def check_ended(self) -> None:
        """Raise RowCountError if the references ran operations that the samples did not."""
        if self.position != len(self.entries):
            raise RowCountError(
                f"{self.entries[self.position][0]}: ran for the references and not for the samples; both "
                "must run the same operations: choose by torch.where(condition, a, b), not by if"
            )

    def _check_rows(self, name: str, place: int, entry: Any) -> None:
        if self.fits is not None and not self.fits(place, entry):
            raise RowCountError(
                f"{name}: runs on some of the rows of a batch, and not on all of them; run it on "
                "all, and choose by torch.where(condition, a, b)"
            )

    def outer(self, place: int) -> int:
        """Return what is merged with the batch outside of it, in a tensor of the operation that runs now."""
        return self.outers[self.position - 1][place] if self.outers else 1


_current: ContextVar[Tape | None] = ContextVar("rewriter_tape", default=None)


def current() -> Tape | None:
    """Return the tape of the run under way in this thread."""
    return _current.get()


@contextmanager
def running(tape: Tape) -> Iterator[None]:
    """Make ``tape`` the one of this thread."""
    token = _current.set(tape)
    try:
        yield
    finally:
        _current.reset(token)
