"""The step of a sweep with two players, written down as operations on rows.

A step has four corners: input and state each of the sample or of the reference. Two are kept of the runs, two
belong to the pair and are computed here. From corner to corner one of both moves; what moves is a difference
of what was taken, so that the slopes of both moves of a player have their costly factor in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

from torch import fx

from passes.operations.products.rule import product_multipliers
from passes.operations.table import rule_of
from rewriter.engine.sweeps.cell_graph import CellGraph
from rewriter.engine.sweeps.pieces import Piece
from rewriter.engine.sweeps.program import SLOPES, NoProgramError, Scale, Slope, Written, number_of
from rewriter.engine.sweeps.two_players.registers import Emitted, packed

#: Of which end the input is, and the state: 1 for the sample's.
Corner = tuple[int, int]
# Elements that go through all operations together: there are more registers than in other programs.
_PART = 64


class Move(NamedTuple):
    """One player moves from reference to sample.

    Args:
        player: 0 for the input, 1 for the state.
        begin: the corner.
        end: the other one.

    """

    player: int
    begin: Corner
    end: Corner


_MOVES = Move(0, (0, 0), (1, 0)), Move(0, (0, 1), (1, 1)), Move(1, (0, 0), (0, 1)), Move(1, (1, 0), (1, 1))


class Term(NamedTuple):
    """A number times what is in a register; the number alone if that is None."""

    register: int | None
    times: float


class TwoPlayerProgram(Written):
    """What a step of the sweep of a cell does, whose input and state are two players.

    Args:
        step: the cell's graph.

    Raises:
        NoProgramError: for a cell that the library has no operations for.

    Example:
        >>> from passes.recurrent.cells import RNNCellAtoms
        >>> program = TwoPlayerProgram(CellGraph(RNNCellAtoms("tanh")))
        >>> program.once, len(program.operations) - program.once
        (27, 5)

    """

    def __init__(self, step: CellGraph) -> None:
        if step.norms:
            raise NoProgramError("a norm")
        super().__init__(step)
        self._emitted: list[Emitted] = []
        self._count = 0
        self._known: dict[Any, int] = {}
        x, h = step.inputs
        #: The player that each value of what is taken belongs to.
        self._player = {x: 0, h: 1} | dict.fromkeys(step.old, 1)
        self._of: dict[Piece, frozenset[int]] = {}
        self._place: dict[Piece, int] = {}
        taken = [x, h, *step.old]
        for k, node in enumerate([*step.kept, *taken]):
            for j, piece in enumerate(step.pieces.of[node]):
                self._place[piece] = len(self.kept)
                self.kept.append((k, j))
        coefficients = self._coefficients()
        once = len(self._emitted)
        self._write_each(coefficients)
        self.operations, self.registers = packed(self._emitted, once)
        self.once, self.part = once, _PART
        self.check()

    def _new(self, what: str, a: int = 0, b: int = 0, c: int = 0, by: float = 1.0) -> int:
        self._count += 1
        self._emit(what, self._count - 1, a, b, c, by)
        return self._count - 1

    def _emit(self, what: str, to: int, a: int = 0, b: int = 0, c: int = 0, by: float = 1.0) -> None:
        self._emitted.append(Emitted(number_of(what), to, a, b, c, by))

    def _once(self, what: str, a: int = 0, b: int = 0, c: int = 0, by: float = 1.0) -> int:
        """Return the register of what is computed once however often it is asked for."""
        key = what, a, b, c, by
        if key not in self._known:
            self._known[key] = self._new(*key)
        return self._known[key]

    def _sum(self, terms: Sequence[tuple[int, float]]) -> int:
        """Return the register of a sum of registers times numbers."""
        (first, by), *rest = terms
        if by == 1 and not rest:
            return first
        key = tuple(terms)
        if key not in self._known:
            self._known[key] = to = self._new("set", first, by=by)
            for register, times in rest:
                self._emit("add", to, register, by=times)
        return self._known[key]

    def _players(self, piece: Piece) -> frozenset[int]:
        """Return whose moves move a value."""
        if piece not in self._of:
            node = piece[0]
            if node in self._player:
                self._of[piece] = frozenset({self._player[node]})
            else:
                self._of[piece] = frozenset().union(*map(self._players, self._made_of(piece)))
        return self._of[piece]

    def _made_of(self, piece: Piece) -> list[Piece]:
        node, j = piece
        varying = [each for each in node.all_input_nodes if self.step.flow.varies(each)]
        return [self.step.pieces.of[each][j] for each in varying]

    def _moved(self, piece: Piece, move: Move) -> int | None:
        """Return by how much a value moves; None if it does not."""
        if move.player not in self._players(piece):
            return None
        node, j = piece
        step = self.step
        if node in self._player:
            return self._difference(self._kept(piece, 1), self._kept(piece, 0))
        if node in step.scaled:
            parts = [(self._moved(step.pieces.of[each][j], move), each) for each in step.scaled[node]]
            scaled = [
                self._once("scale", each, self._scale(piece, source))
                for each, source in parts
                if each is not None
            ]
            return self._sum([(each, 1.0) for each in scaled])
        if node in step.linear:
            moved = [
                (self._moved(step.pieces.of[each][j], move), by) for each, by in step.linear[node].items()
            ]
            return self._sum([(each, by) for each, by in moved if each is not None])
        return self._difference(self._value(piece, move.end), self._value(piece, move.begin))

    def _difference(self, a: int, b: int) -> int:
        return self._sum([(a, 1.0), (b, -1.0)])

    def _scale(self, piece: Piece, source: fx.Node) -> int:
        scale = Scale(piece, source)
        if scale not in self.scales:
            self.scales.append(scale)
        return self.scales.index(scale)

    def _kept(self, piece: Piece, end: int) -> int:
        return self._once("kept", self._place[piece], 1 - end)

    def _value(self, piece: Piece, corner: Corner) -> int:
        """Return the register of what an atom takes, or gives, at a corner."""
        players = self._players(piece)
        ends = {corner[each] for each in players}
        if len(ends) == 1:
            return self._kept(piece, ends.pop())
        node, j = piece
        if node not in self.step.atoms:
            player = corner.index(1)
            moved = self._moved(piece, Move(player, (0, 0), corner))
            assert moved is not None, "it is made of both players"
            return self._sum([(self._kept(piece, 0), 1.0), (moved, 1.0)])
        operands = [self._value(self.step.pieces.of[each][j], corner) for each in node.all_input_nodes]
        slope = self._slope(node)
        if slope is not None:
            return self._once(slope.value, operands[0])
        a, b = operands if len(operands) == 2 else operands * 2
        return self._once("multiply", a, b)

    def _slope(self, node: fx.Node) -> Slope | None:
        """Return the operations of an atom of one operand; None for a product."""
        rule = rule_of(self.step.model.get_submodule(str(node.target)))
        assert rule is not None
        slope = None if rule.multipliers is None else SLOPES.get(rule.multipliers)
        if slope is not None:
            return slope
        if rule.multipliers is not product_multipliers or len(node.args) != 2:
            raise NoProgramError(f"{node.target} has a rule that the library does not know")
        return None

    def _multipliers(self, piece: Piece, move: Move) -> Iterator[tuple[Piece, int]]:
        """Yield what an atom's operands are made of, and the multipliers, of those that move."""
        node, j = piece
        operands = [self.step.pieces.of[cast("fx.Node", each)][j] for each in node.args]
        slope = self._slope(node)
        if slope is None:
            for own, other in (operands, operands[::-1]):
                if move.player in self._players(own):
                    yield own, self._mean(other, move)
            return
        moved = self._moved(operands[0], move)
        assert moved is not None, "the atom moves"
        if slope.ratio is not None:
            moved = self._once("ratio", moved, by=slope.ratio)
        after, before = (self._value(piece, each) for each in (move.end, move.begin))
        yield operands[0], self._once(slope.between, moved, after, before)

    def _mean(self, piece: Piece, move: Move) -> int:
        begin = self._value(piece, move.begin)
        if move.player not in self._players(piece):
            return begin
        return self._sum([(begin, 0.5), (self._value(piece, move.end), 0.5)])

    def _coefficients(self) -> dict[Piece, dict[int, Term]]:
        """Write what a one in each new state reaches of what is taken: the mean of both moves of a player."""
        found: dict[Piece, dict[int, list[Term]]] = {}
        for k, node in enumerate(self.step.new):
            for move in _MOVES:
                for piece, term in self._reached(self.step.pieces.of[node][0], move).items():
                    found.setdefault(piece, {}).setdefault(k, []).append(Term(term.register, term.times / 2))
        return {piece: {k: self._total(each) for k, each in of.items()} for piece, of in found.items()}

    def _total(self, terms: Sequence[Term]) -> Term:
        if all(each.register is None for each in terms):
            return Term(None, sum(each.times for each in terms))
        return Term(self._sum([(self._register(each), each.times) for each in terms]), 1.0)

    def _register(self, term: Term) -> int:
        return self._once("number") if term.register is None else term.register

    def _reached(self, start: Piece, move: Move) -> dict[Piece, Term]:
        step = self.step
        d = {start: Term(None, 1.0)} if move.player in self._players(start) else {}
        found = {}
        for piece in step.backwards():
            term = d.pop(piece, None)
            if term is None:
                continue
            node, j = piece
            if node in self._player:
                found[piece] = term
            elif node in step.scaled:
                for source in step.scaled[node]:
                    scaled = self._once("scale", self._register(term), self._scale(piece, source))
                    self._pass(d, step.pieces.of[source][j], Term(scaled, term.times), move)
            elif node in step.linear:
                for source, factor in step.linear[node].items():
                    passed = Term(term.register, term.times * factor)
                    self._pass(d, step.pieces.of[source][j], passed, move)
            else:
                for operand, by in self._multipliers(piece, move):
                    of = by if term.register is None else self._once("multiply", term.register, by)
                    self._pass(d, operand, Term(of, term.times), move)
        return found

    def _pass(self, d: dict[Piece, Term], piece: Piece, term: Term, move: Move) -> None:
        if move.player not in self._players(piece):
            return
        if piece in d:
            term = self._total([d[piece], term])
        d[piece] = term

    def _write_each(self, coefficients: Mapping[Piece, Mapping[int, Term]]) -> None:
        """Write what is done for each output."""
        step = self.step
        loaded = [self._new("load", k) for k in range(len(step.new))]

        def sum_of(piece: Piece) -> int:
            to = -1
            for k, (register, times) in coefficients.get(piece, {}).items():
                what = ("set", "add") if register is None else ("multiply", "multiply_add")
                of = (loaded[k], 0, 0, times) if register is None else (loaded[k], register)
                if to < 0:
                    to = self._new(what[0], *of)
                else:
                    self._emit(what[1], to, *of)
            return to

        x, h = step.inputs
        for first, node in ((0, h), (step.gates, x)):
            for j in range(step.gates):
                self._emit("gate", first + j, sum_of((node, j)))
        for k, node in enumerate(step.old):
            # What goes to the hidden state through its weights alone is the caller's.
            if k or (node, 0) in coefficients:
                self._emit("store", k, sum_of((node, 0)))


_PROGRAMS: WeakKeyDictionary[CellGraph, TwoPlayerProgram | None] = WeakKeyDictionary()


def program_of_players(step: CellGraph) -> TwoPlayerProgram | None:
    """Return the program of a cell, None for one that the library has no operations for."""
    if step not in _PROGRAMS:
        try:
            _PROGRAMS[step] = TwoPlayerProgram(step)
        except NoProgramError:
            _PROGRAMS[step] = None
    return _PROGRAMS[step]
