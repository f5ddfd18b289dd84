"""Attributions of a linked model's outputs to its inputs, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rewriter.engine.integers.origins import is_integer
from rewriter.engine.merged_batch import Layouts, layouts_of
from rewriter.engine.problem import Inputs, Problem, Target
from rewriter.engine.runs.rows import pulled_back, run_linked, run_rows
from rewriter.engine.sweeps.linked_recurrence import Forward
from rewriter.engine.sweeps.two_players.asked import has_two_players
from rewriter.engine.tape import Pairing, RowCountError, Tape
from rewriter.engine.tiles import Tiles, default_budget, spans

# Bytes that the run of the references may leave to be remembered.
_SMALL = 2**28
# Rows at a time of a run that only tells layouts.
_ROWS = 16


@dataclass(frozen=True)
class Part:
    """Attributions of some samples to some references.

    Args:
        begin: first sample.
        end: behind the last sample.
        outputs: the model's, (end - begin, *).
        sums: for each input the sum over those references, (K, end - begin, *shape), float64.
        pairs: the number of pairs.
        multipliers: likewise of the multipliers, if they are asked for.
        variances: likewise of the variances of the attributions to each reference over the draws of a path;
            empty where nothing was drawn more than once.

    """

    begin: int
    end: int
    outputs: Tensor
    base: Tensor
    sums: Inputs
    pairs: int
    multipliers: Inputs
    variances: Inputs = field(default_factory=list)


@dataclass(frozen=True)
class Size:
    """What a run of the model needs and looks like.

    Args:
        row_bytes: what one row leaves.
        step_bytes: what one step of the widest recurrence leaves of it; 0 without recurrences.
        layouts: what each operation's batch is merged of.

    """

    row_bytes: int
    step_bytes: int
    layouts: Layouts


@dataclass
class Remembered:
    """What one explanation leaves for the next: sizes, and the run of the references if it is small.

    Args:
        sizes: by the shapes and dtypes of a row.
        undecided: shapes and dtypes of rows of which the model decides nothing, whatever numbers they hold.
        references: the run, with the checksums of the weights, and the rule of cells, that it was made by.

    """

    sizes: dict[Any, Size] = field(default_factory=dict)
    undecided: set[Any] = field(default_factory=set)
    references: tuple[tuple[Any, ...], Tape, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the run, which may be large: whoever needs it can make it again."""
        return {"sizes": self.sizes, "undecided": self.undecided, "references": None}

    def size(self, target: Target, problem: Problem) -> Size:
        """Return the size of a run, for which one row is measured unless one has told all of it before."""
        row = [each[:1] for each in problem.samples]
        key = (has_two_players(), *((each.shape, each.dtype) for each in row))
        if key not in self.sizes or not self.sizes[key].layouts.proven:
            self.sizes[key] = _measure(target, row, _rows(problem))
        return self.sizes[key]


def attribute(
    target: Target, problem: Problem, max_memory: int | None = None, remembered: Remembered | None = None
) -> Iterator[Part]:
    """Yield the attributions tile by tile; sums over all parts of a sample are sums over all references.

    Args:
        target: what to explain.
        problem: by what.
        max_memory: bytes for what is needed beside the samples and the result.
        remembered: what was left by an explanation with the same references, unless they are ``own``.

    """
    if 0 in (problem.rows, problem.count, problem.outputs):
        return
    remembered = Remembered() if remembered is None else remembered
    size = remembered.size(target, problem)
    budget = default_budget(problem.device) if max_memory is None else max_memory
    tiles = Tiles.choose(problem, size.row_bytes, size.step_bytes, budget)
    small = tiles.references == problem.count and size.row_bytes * problem.count <= _SMALL
    for begin, end in spans(problem.count, tiles.references):
        # What one block leaves is gone before the next one runs.
        block = _Block(target, problem.of_references(begin, end), tiles, size, budget)
        yield from block.parts(remembered if small else None)


@dataclass(frozen=True)
class _Block:
    """All samples, by as many references as are kept at a time."""

    target: Target
    problem: Problem
    tiles: Tiles
    size: Size
    budget: int

    def parts(self, remembered: Remembered | None) -> Iterator[Part]:
        """Yield the attributions of a few samples at a time.

        Args:
            remembered: what the run of the references is taken from, and left to.

        """
        by_rows = self.size.layouts.counts_rows
        recorded = None
        if not by_rows and not self.problem.own:
            try:
                recorded = self._record(self.problem.references, remembered)
            except RowCountError:
                by_rows = True
        for begin, end in spans(self.problem.rows, self.tiles.samples):
            part = None
            if not by_rows:
                try:
                    part = self._part(begin, end, recorded)
                except RowCountError:
                    by_rows = True
            if part is not None:
                yield part
            else:
                yield from self._row_for_row(begin, end)

    def _part(self, begin: int, end: int, recorded: tuple[Tape, Tensor] | None) -> Part:
        """Return the attributions by references that ran for all samples, or run for these alone."""
        problem = self.problem.of_rows(slice(begin, end))
        if recorded is None:
            # Nothing here holds on to what one span's references left while the next one's run.
            return _part(
                self.target,
                problem,
                begin,
                self._record(problem.all_references()),
                self.tiles,
                self.size.layouts,
            )
        tape, base = recorded
        tape = Tape(entries=tape.entries, inputs=tape.inputs, tokens=self.target.tokens)
        return _part(self.target, problem, begin, (tape, base), self.tiles, self.size.layouts)

    def _record(self, references: Inputs, remembered: Remembered | None = None) -> tuple[Tape, Tensor]:
        return record(self.target, references, remembered, self.problem.read_as, self.size.layouts)

    def _row_for_row(self, begin: int, end: int) -> Iterator[Part]:
        """Yield the attributions by one reference at a time, in as many rows as there are samples.

        Both run the same operations then, also where code goes by the number of rows.
        """
        for j in range(self.problem.count):
            single = self.problem.of_rows(slice(begin, end)).of_references(j, j + 1)
            single = single.with_references_of_their_own()
            tiles = Tiles.choose(single, self.size.row_bytes, self.size.step_bytes, self.budget)
            for first, last in spans(single.rows, tiles.samples):
                rows = single.of_rows(slice(first, last))
                recorded = record(self.target, rows.all_references(), read_as=rows.read_as)
                yield _part(self.target, rows, begin + first, recorded, tiles)


def _part(
    target: Target,
    problem: Problem,
    begin: int,
    recorded: tuple[Tape, Tensor],
    tiles: Tiles,
    layouts: Layouts | None = None,
) -> Part:
    tape, base = recorded
    sums, multipliers, outputs = _pair(target, problem, tape, tiles, layouts)
    total = torch.unflatten(base, 0, (problem.count, -1)).sum(0)
    pairs = problem.rows * problem.count
    return Part(begin, begin + problem.rows, outputs, total, sums, pairs, multipliers)


def layouts(target: Target, rows: Inputs) -> Layouts:
    """Return where the batch is in what each operation leaves of some rows.

    Args:
        target: what is explained.
        rows: of each input.

    """
    chosen = torch.zeros(len(rows[0]), 1, dtype=torch.int64)
    return Remembered().size(target, Problem(rows, rows, chosen)).layouts


def _rows(problem: Problem) -> Iterator[Inputs]:
    """Yield all samples and references, a few at a time."""
    for rows in (problem.samples, problem.all_references()):
        for begin, end in spans(len(rows[0]), _ROWS):
            yield [each[begin:end] for each in rows]


def _measure(target: Target, row: Inputs, others: Iterator[Inputs]) -> Size:
    def noted(inputs: Inputs, tape: Tape) -> Tape:
        run_rows(target, inputs, tape)
        return tape

    # Two rows: a model may take the batch away where it is of size 1.
    tape = noted([torch.cat([each, each]) for each in row], Tape(tokens=target.tokens))
    total = step = 0
    for _, entry in tape.entries:
        if isinstance(entry, Forward):
            kept = sum(each.nbytes for each in entry.kept)
            total += kept
            # A third of it are the arguments of the activations.
            step = max(step, kept // 3 // entry.kept[0].shape[0])
        else:
            total += sum(each.nbytes for each in (*entry[0], entry[1]))
    layouts = layouts_of(noted, row, tape, others)
    return Size(total // 2 + sum(each.nbytes for each in row), step // 2, layouts)


def record(
    target: Target,
    references: Inputs,
    remembered: Remembered | None = None,
    read_as: Inputs | None = None,
    layouts: Layouts | None = None,
) -> tuple[Tape, Tensor]:
    """Run the references, unless that is remembered; return what they left and their flattened outputs."""
    # What is left hangs on the weights, and on the rule of the cells.
    made_by = (has_two_players(), *target.weights.checksums()) if remembered else ()
    if remembered and remembered.references and remembered.references[0] == made_by:
        return remembered.references[1:]
    tape = Tape(tokens=target.tokens, fits=partial(layouts.fits, len(references[0])) if layouts else None)
    base = run_rows(target, references, tape, read_as)
    if remembered:
        remembered.references = made_by, tape, base
    return tape, base


def _pair(
    target: Target, problem: Problem, tape: Tape, tiles: Tiles, layouts: Layouts | None
) -> tuple[Inputs, Inputs, Tensor]:
    """Return the sums of attributions, and of multipliers, over the references, and the samples' outputs."""
    samples, references, chosen = problem.samples, problem.stacked(), problem.chosen
    pairing = Pairing(problem.rows, problem.count, problem.own)
    if not pairing.own and pairing.samples == pairing.references:
        # The batch is told by its size: let the two differ.
        samples = [torch.cat([each, each[-1:]]) for each in samples]
        chosen = torch.cat([chosen, chosen[-1:]])
        pairing.samples += 1
    tape.pairing = pairing
    tape.outers = layouts.outers if layouts else []
    tape.fits = partial(layouts.fits, pairing.samples) if layouts else None
    leaves, flat = run_linked(target, samples, tape)
    if target.interim is not None:
        # Beside what is cut there, what the model's inputs do on ways around it.
        leaves, references = [*tape.leaves, *leaves], [*tape.inputs, *references]
    looked_up = [each.output for each in tape.lookups]
    sums = [
        torch.zeros(chosen.shape[1], *leaf.shape, dtype=torch.float64, device=leaf.device) for leaf in leaves
    ]
    slopes = [torch.zeros_like(each) for each in sums] if problem.multipliers else []
    if target.interim is not None:
        # Of what is looked up, by row: it has no place in what is explained.
        sums.append(sums[-1].new_zeros(chosen.T.shape))
    for begin, end in spans(pairing.references, tiles.paired):
        pairing.begin, pairing.end = begin, end
        deltas = [
            leaf.detach() - each[begin:end] if leaf.requires_grad else None
            for leaf, each in zip(leaves, references, strict=True)
        ]
        for k0, k1 in spans(chosen.shape[1], tiles.outputs):
            pairing.outputs = k1 - k0
            multipliers = pulled_back(flat, [*leaves, *looked_up], chosen[:, k0:k1], pairing)
            for total, each, delta in zip(sums, multipliers[: len(leaves)], deltas, strict=False):
                if each is not None and delta is not None:
                    total[k0:k1] += (torch.unflatten(each, 0, (k1 - k0, end - begin)) * delta).sum(1)
            for total, each in zip(slopes, multipliers[: len(slopes)], strict=True):
                if each is not None:
                    total[k0:k1] += torch.unflatten(each, 0, (k1 - k0, end - begin)).sum(1)
            integers = [each[k0:k1] for each, leaf in zip(sums, leaves, strict=False) if is_integer(leaf)]
            for lookup, each in zip(tape.lookups, multipliers[len(leaves) :], strict=True):
                if each is not None:
                    paired = torch.unflatten(each, 0, (k1 - k0, end - begin))
                    found = lookup.pull(paired, pairing)
                    if target.interim is None:
                        lookup.place(found, integers)
                    else:
                        sums[-1][k0:k1] += lookup.by_row(found, pairing)
    rows = slice(problem.rows)
    return [each[:, rows] for each in sums], [each[:, rows] for each in slopes], flat.detach()[rows]
