"""Attributions along paths from references to samples, tile by tile.

Points of a path are numbered from the reference, 0, to the sample. Those of even number run once and leave
a tape, those of odd number run once linked to it: each faces the point before it and the one behind it, and
one backward pass carries the multipliers of all switches. A multiplier is the same whichever of two ends is
the sample. So nothing runs twice: in a tile references run once for all samples, and samples of even number
for all references.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from rewriter.engine.attribution import Part, Remembered, record
from rewriter.engine.integers.origins import is_integer
from rewriter.engine.merged_batch import Layouts
from rewriter.engine.path.points import Path, between
from rewriter.engine.path.tiles import PathTiles
from rewriter.engine.problem import Inputs, Problem, Target
from rewriter.engine.runs.rows import pulled_back, run_linked
from rewriter.engine.tape import Facing, Pairing, RowCountError
from rewriter.engine.tiles import default_budget, spans


def attribute_along(
    path: Path,
    target: Target,
    problem: Problem,
    max_memory: int | None = None,
    remembered: Remembered | None = None,
) -> Iterator[Part]:
    """Yield the attributions tile by tile; sums over all parts of a sample are sums over all references.

    Args:
        path: what lies between references and samples.
        target: what to explain, with respect to the model's inputs.
        problem: by what.
        max_memory: bytes for what is needed beside the samples and the result.
        remembered: sizes that another explanation left.

    """
    if 0 in (problem.rows, problem.count, problem.outputs):
        return
    size = (Remembered() if remembered is None else remembered).size(target, problem)
    budget = default_budget(problem.device) if max_memory is None else max_memory
    tiles = PathTiles.choose(problem, path, size, budget)
    counts_rows = size.layouts.counts_rows
    for (m0, m1), (n0, n1) in product(
        spans(problem.rows, tiles.samples), spans(problem.count, tiles.references)
    ):
        part = problem.of_rows(slice(m0, m1)).of_references(n0, n1)
        tile = _Tile(target, part, path, tiles, range(n0, n1), size.layouts, counts_rows)
        yield replace(tile.explained(), begin=m0, end=m1)
        counts_rows = tile.counts_rows


@dataclass(frozen=True)
class _Points:
    """Some points of the paths of a tile.

    Args:
        inputs: one tensor per input of the model, one row per point.
        weights: for each input how far each is from its reference, (places, paths, n, 1, *shape).
        index: for each number of a point the rows of its points, (paths, n, m).

    """

    inputs: Inputs
    weights: Inputs
    index: dict[int, Tensor]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.inputs[0])

    def of(self, places: Sequence[int]) -> Tensor:
        """Return the rows of points of some numbers, one after the other."""
        return torch.stack([self.index[t] for t in places]).flatten()


@dataclass(frozen=True)
class _Side:
    """What some points of odd number face on one side.

    Args:
        odd: their numbers.
        step: -1 for what is before them, 1 for what is behind them.
        last: the number of the samples, behind which there is nothing.

    """

    odd: Sequence[int]
    step: int
    last: int

    @property
    def places(self) -> list[int]:
        """Numbers of the points that they face; a sample of odd number faces the same on both sides."""
        return [t + self.step if t + self.step <= self.last else t - 1 for t in self.odd]

    @property
    def scale(self) -> Tensor:
        """What multipliers are taken times: a switch comes from what is before, goes to what is behind."""
        return torch.tensor([-float(self.step) if t + self.step <= self.last else 0.0 for t in self.odd])

    def moved(self, weights: Tensor, facing: _Points, k: int) -> Tensor:
        """Return how far input ``k`` is from what it faces, (places, paths, n, 1, *shape)."""
        first = min(facing.index)
        return weights - facing.weights[k][[(t - first) // 2 for t in self.places]]


@dataclass
class _Tile:
    """Some samples and some references.

    Args:
        target: what is explained.
        problem: of the tile.
        path: between references and samples.
        tiles: how much of the path is run at a time.
        numbers: of the references.
        layouts: of what each operation leaves.
        counts_rows: which operations run, or on what, depends on the number of rows; this is found out.

    """

    target: Target
    problem: Problem
    path: Path
    tiles: PathTiles
    numbers: range
    layouts: Layouts
    counts_rows: bool

    def explained(self) -> Part:
        """Return the attributions of the samples, summed over the references."""
        path, problem = self.path, self.problem
        odd = range(1, path.switches + 1, 2)
        total, slopes = self._zeros(), self._zeros(1) if problem.multipliers else []
        squares = self._zeros() if path.draws > 1 else []
        outputs = base = torch.empty(0)
        for d0, d1 in spans(path.draws, self.tiles.draws):
            orders = [path.orders(draw, self.numbers).to(problem.device) for draw in range(d0, d1)]
            found = self._zeros(d1 - d0)
            for p0, p1 in spans(len(odd), self.tiles.points):
                ends = self._add(found, slopes, orders, odd[p0:p1])
                outputs, base = ends.get(path.switches, outputs), ends.get(0, base)
            for k, each in enumerate(found):
                total[k] += each.sum(1)
                if squares:
                    squares[k] += each.square().sum(1)
        draws = path.draws
        variances = [
            # Of the mean over the draws, from how they differ; references are drawn for independently.
            ((square - each.square() / draws) / (draws * (draws - 1))).clamp_min(0).sum(1)
            for square, each in zip(squares, total, strict=False)
        ]
        sums = [each.sum(1) / draws for each in total]
        slopes = [each.sum((1, 2)) / draws for each in slopes]
        pairs = problem.rows * problem.count
        return Part(0, problem.rows, outputs[0, 0], base[0].sum(0), sums, pairs, slopes, variances)

    def _zeros(self, *draws: int) -> Inputs:
        """Return zeros for each input, (outputs, draws, references, samples, *shape)."""
        # One reference by itself only where its draws are compared.
        lead = self.problem.outputs, *draws, self.problem.count if self.path.draws > 1 else 1
        return [each.new_zeros(*lead, *each.shape, dtype=torch.float64) for each in self.problem.samples]

    def _add(
        self, found: Inputs, slopes: Inputs, orders: Sequence[Tensor], odd: Sequence[int]
    ) -> dict[int, Tensor]:
        """Add what the switches at some points of odd number give.

        Returns:
            The outputs at the ends of the paths that were among the points, (paths, n, m, all outputs).

        """
        last = self.path.switches
        even = range(odd[0] - 1, min(odd[-1] + 1, last) + 1, 2)
        here, facing = self._points(odd, orders, shared=False), self._points(even, orders, shared=True)
        sides = [_Side(odd, -1, last), _Side(odd, 1, last)]
        pulled = []
        if not self.counts_rows:
            try:
                pulled = [(sides, *self._pull(found, slopes, here, facing, sides))]
            except RowCountError:
                self.counts_rows = True
        if self.counts_rows:
            # It gets as many of the one as of the other.
            pulled = [([each], *self._pull(found, slopes, here, facing, [each])) for each in sides]
        ends: dict[int, Tensor] = {}
        for some, f, f0 in pulled:
            for side, each in zip(some, f0, strict=True):
                ends |= dict(zip(side.places, each, strict=True))
            ends |= {t: at for t, at in zip(odd, f, strict=True) if t == last}
        return ends

    def _points(self, places: Sequence[int], orders: Sequence[Tensor], *, shared: bool) -> _Points:
        """Return points of given numbers; references and samples once if they are ``shared``."""
        problem, last = self.problem, self.path.switches
        grid = len(orders) * self.path.directions, problem.count, problem.rows
        drawn = [self.path.weights(places, each) for each in orders]
        weights = [torch.cat(each, 1).unsqueeze(3) for each in zip(*drawn, strict=True)]
        x = [each[None, None] for each in problem.samples]
        r = [each[None] for each in problem.stacked()]
        parts: list[Inputs] = []
        index, begin = {}, 0
        for j, t in enumerate(places):
            points = [between(*each) for each in zip(x, r, [each[j] for each in weights], strict=True)]
            if shared and t in (0, last):
                points = r if t == 0 else x
            lead = points[0].shape[:3]
            numbers = torch.arange(begin, begin + lead.numel(), device=problem.device).view(lead)
            index[t] = numbers.expand(grid)
            begin += lead.numel()
            parts.append([each.flatten(0, 2) for each in points])
        return _Points([torch.cat(each) for each in zip(*parts, strict=True)], weights, index)

    def _pull(
        self, found: Inputs, slopes: Inputs, here: _Points, facing: _Points, sides: Sequence[_Side]
    ) -> tuple[Tensor, Tensor]:
        """Run points, and pull multipliers of the switches to what they face back to the inputs.

        Returns:
            The outputs of the points, and of those they face, (places, paths, n, m, all outputs).

        """
        problem, rows = self.problem, here.rows
        lead = len(here.index), *here.index[sides[0].odd[0]].shape
        index = torch.stack([facing.of(side.places) for side in sides])
        scale = torch.stack([side.scale.repeat_interleave(rows // lead[0]) for side in sides])
        pairing: Pairing = Facing(rows, facing.rows, index=index)
        partners = facing.inputs
        if self.counts_rows:
            partners = [each[index[0]] for each in partners]
            index = torch.arange(rows, device=index.device).unsqueeze(0)
            pairing = Pairing(rows, 1, own=True, end=1)
        elif facing.rows == rows:
            # The batch is told by its size: let the two differ.
            partners = [torch.cat([each, each[-1:]]) for each in partners]
            pairing.references += 1
        layouts = None if self.counts_rows else self.layouts
        tape, f0 = record(self.target, partners, read_as=problem.read_as, layouts=layouts)
        tape.pairing = pairing
        tape.outers = layouts.outers if layouts else []
        tape.fits = partial(layouts.fits, rows) if layouts else None
        leaves, f = run_linked(self.target, here.inputs, tape, problem.read_as)
        chosen = problem.chosen.expand(*lead, problem.outputs).flatten(0, -2)
        deltas = [
            leaf.detach() - each[index] if leaf.requires_grad else None
            for leaf, each in zip(leaves, partners, strict=True)
        ]
        for k0, k1 in spans(problem.outputs, self.tiles.outputs):
            pairing.outputs = k1 - k0
            wanted = [*leaves, *(each.output for each in tape.lookups)]
            multipliers = [
                None if each is None else torch.unflatten(each, 0, (k1 - k0, len(sides)))
                for each in pulled_back(f, wanted, chosen[:, k0:k1], pairing, scale)
            ]
            values = [each.new_zeros(k1 - k0, *each.shape, dtype=torch.float64) for each in leaves]
            for value, each, delta in zip(values, multipliers, deltas, strict=False):
                if each is not None and delta is not None:
                    value.copy_((each * delta).sum(1))
            integers = [value for value, leaf in zip(values, leaves, strict=True) if is_integer(leaf)]
            for lookup, each in zip(tape.lookups, multipliers[len(leaves) :], strict=True):
                if each is not None:
                    lookup.place(lookup.pull(each, pairing), integers)
            for total, value in zip(found, values, strict=True):
                self._reduce(total[k0:k1], torch.unflatten(value, 1, lead))
            for k, (total, each) in enumerate(zip(slopes, multipliers, strict=False)):
                if each is not None:
                    moved = torch.stack([side.moved(here.weights[k], facing, k) for side in sides])
                    self._reduce(total[k0:k1], (torch.unflatten(each, 2, lead) * moved.to(each)).sum(1))
        return torch.unflatten(f.detach(), 0, lead), torch.unflatten(f0[index], 1, lead)

    def _reduce(self, total: Tensor, values: Tensor) -> None:
        """Add what points have, (outputs, places, paths, n, m, *shape), up to what is asked for."""
        by_draw = torch.unflatten(values.sum(1), 1, (-1, self.path.directions)).double().mean(2)
        total += by_draw.sum_to_size(total.shape)
