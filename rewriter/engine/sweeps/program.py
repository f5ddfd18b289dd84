"""The step of a derived sweep written down as operations on rows, which a library in C carries out.

A cell's graph read backwards is a list of operations on rows of H numbers: slopes and means of what is kept,
for each pair once; then, for each output, products and sums from the new states to the gates and the old
states. The rules of atoms that the library knows are the same as in torch, written a second time; a cell with
others has no program.

A norm ``y = q (x - mean)`` of one or several rows, W numbers together, passes ``d`` on as

    r (d - mean of d)  -  r² (y/q + y0/q0) / 2W · Σ d (y + y0) / 2,        r = 2 / (1/q + 1/q0).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx

from passes.operations.contract import Multipliers
from passes.operations.elementwise.sigmoid_tanh_relu import (
    relu_multiplier,
    sigmoid_multiplier,
    tanh_multiplier,
)
from passes.operations.products.rule import product_multipliers
from passes.operations.table import rule_of
from rewriter.engine.sweeps.cell_graph import CellGraph
from rewriter.engine.sweeps.compiled import SWEEPS, faced_rows, sweep_struct
from rewriter.engine.sweeps.pieces import Piece
from rewriter.engine.sweeps.sweep import Swept

# What an operation does, in the order of the library.
_WHAT = (
    *("tanh_slope", "sigmoid_slope", "relu_slope", "mean", "load", "set", "add", "multiply", "multiply_add"),
    *("scale", "scale_add", "store", "gate", "norm_ratio", "norm_slope", "norm_sums", "norm_passed"),
    *("kept", "number", "tanh_of", "sigmoid_of", "relu_of", "ratio"),
    *("tanh_between", "sigmoid_between", "relu_between"),
)
# Which of an operation's numbers are registers that are read; "t" is the one that is written.
_READ = {
    **dict.fromkeys(("set", "scale", "store", "gate", "tanh_of", "sigmoid_of", "relu_of", "ratio"), "a"),
    **dict.fromkeys(("add", "scale_add"), "ta"),
    "multiply": "ab",
    "multiply_add": "tab",
    **dict.fromkeys(("tanh_between", "sigmoid_between", "relu_between"), "abc"),
}
#: The same by the numbers of the operations of rows without norms, and those that write to a register.
READS = {k: _READ.get(name, "") for k, name in enumerate(_WHAT)}
WRITES = {k for k, name in enumerate(_WHAT) if name not in ("store", "gate")}
#: What is done, where to, three operands, and a number.
Operation = tuple[int, int, int, int, int, float]


class Slope(NamedTuple):
    """The operations of an atom of one operand.

    Args:
        kept: its slope between both ends of what is kept.
        value: what it gives.
        between: its slope between two registers.
        ratio: what the way between them is taken times for a ratio first; None where there is none.

    """

    kept: str
    value: str
    between: str
    ratio: float | None


SLOPES: Mapping[Multipliers, Slope] = {
    tanh_multiplier: Slope("tanh_slope", "tanh_of", "tanh_between", 1.0),
    sigmoid_multiplier: Slope("sigmoid_slope", "sigmoid_of", "sigmoid_between", 0.5),
    relu_multiplier: Slope("relu_slope", "relu_of", "relu_between", None),
}
# Elements that go through all operations together, unless a norm needs whole rows.
_PART = 128
# Numbers of all registers, which are on the stack of a thread.
_MOST = 256 * _PART


class _OperationStruct(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("what", "to", "a", "b", "c")),
        ("by", ctypes.c_double),
    ]


def _program_struct(dtype: torch.dtype) -> type[ctypes.Structure]:
    fields: list[tuple[str, Any]] = [("of", SWEEPS[dtype])]
    fields += [(name, ctypes.c_int64) for name in ("count", "once", "registers", "slots", "part")]
    fields += [(name, ctypes.c_void_p) for name in ("operations", "x", "x0", "widths", "scales", "states")]
    return type("Program", (ctypes.Structure,), {"_fields_": fields})


_STRUCTS = {dtype: _program_struct(dtype) for dtype in (torch.float32, torch.float64)}


class Scale(NamedTuple):
    """Numbers of each feature, which hang on parameters: of which row of a call, and of which operand."""

    piece: Piece
    operand: fx.Node


class Norm(NamedTuple):
    """What a norm needs of a pair.

    Args:
        numbers: the register of its ratio, and of sums over its rows.
        means: those of the mean of both results, a row each.
        slopes: those of what the sum of products with them is taken times.
        share: of each number in their mean; 0 for a norm that takes none off.

    """

    numbers: int
    means: list[int]
    slopes: list[int]
    share: float


def number_of(operation: str) -> int:
    """Return the number of an operation.

    Example:
        >>> number_of("load")
        4

    """
    return _WHAT.index(operation)


class NoProgramError(LookupError):
    """The library has no operations for a cell."""


class Written:
    """A step as a list of operations.

    Args:
        step: the cell's graph.

    """

    #: The library's function that does it.
    function = "program"
    operations: list[Operation]
    #: How many of them are done once for each pair; the others for each output.
    once: int
    #: Elements that go through all operations together.
    part: int

    def __init__(self, step: CellGraph) -> None:
        self.step = step
        self.operations = []
        self.scales: list[Scale] = []
        self.registers = 0
        #: What is kept, row by row: of which tensor, and which row.
        self.kept: list[tuple[int, int]] = []

    def check(self) -> None:
        """Raise NoProgramError if the stack of a thread has no room for the registers."""
        if self.registers * self.part > _MOST:
            raise NoProgramError("too many registers")

    def scales_now(self) -> list[Tensor]:
        """Return the numbers that hang on parameters, as these are now."""
        found = {node: self.step.factors(node) for node in self.step.scaled}
        return [
            self.step.part(found[each.piece[0]][each.operand], each.piece).contiguous()
            for each in self.scales
        ]


class Program(Written):
    """What a step of the sweep of a cell does.

    Args:
        step: the cell's graph.

    Raises:
        NoProgramError: for a cell that the library has no operations for.

    Example:
        >>> from passes.recurrent.cells import RNNCellAtoms
        >>> program = Program(CellGraph(RNNCellAtoms("tanh")))
        >>> [_WHAT[each[0]] for each in program.operations]
        ['tanh_slope', 'load', 'multiply', 'gate']

    """

    def __init__(self, step: CellGraph) -> None:
        super().__init__(step)
        self.kept = [(k, j) for k, node in enumerate(step.kept) for j in range(self._rows(node))]
        self._place = {(step.kept[k], j): place for place, (k, j) in enumerate(self.kept)}
        self.kept += [(len(step.kept) + k, 0) for k in range(len(step.norms))]
        self._norms = {node: self._of_norm(node, k) for k, node in enumerate(step.norms)}
        self._multipliers = {
            (node, j): self._slopes(node, j)
            for node in step.atoms
            if node not in step.norms
            for j in range(self._rows(node))
        }
        self.once = len(self.operations)
        self._read_backwards()
        self.part = (step.width if step.norms else None) or _PART
        self.check()

    def _rows(self, node: fx.Node) -> int:
        return len(self.step.pieces.of[node])

    def _emit(self, what: str, to: int, a: int = 0, b: int = 0, c: int = 0, by: float = 1.0) -> None:
        self.operations.append((number_of(what), to, a, b, c, by))

    def _new(self) -> int:
        self.registers += 1
        return self.registers - 1

    def _of_norm(self, node: fx.Node, number: int) -> Norm:
        """Write what a norm needs of each pair into registers."""
        place = [self._place[node, j] for j in range(self._rows(node))]
        factor, numbers = len(self._place) + number, self._new()
        width = len(place) * (self.step.width or 0)
        self._emit("norm_ratio", numbers, factor)
        means, slopes = [], []
        for each in place:
            means.append(self._new())
            self._emit("mean", means[-1], each)
            slopes.append(self._new())
            self._emit("norm_slope", slopes[-1], each, factor, by=0.5 / width)
        return Norm(numbers, means, slopes, 1 / width if self.step.norms[node].centred else 0.0)

    def _slopes(self, node: fx.Node, j: int) -> list[int]:
        """Write the multipliers of a row of an atom's operands into registers."""
        rule = rule_of(self.step.model.get_submodule(str(node.target)))
        assert rule is not None
        operands = [self._place[each, j] for each in node.all_input_nodes]
        slope = None if rule.multipliers is None else SLOPES.get(rule.multipliers)
        if slope is not None:
            to = self._new()
            self._emit(slope.kept, to, operands[0], self._place[node, j])
            return [to]
        if rule.multipliers is not product_multipliers or len(node.args) != 2:
            raise NoProgramError(f"{node.target} has a rule that the library does not know")
        found = []
        for other in reversed(node.args):
            found.append(self._new())
            self._emit("mean", found[-1], self._place[cast("fx.Node", other), j])
        return found

    def _read_backwards(self) -> None:
        step = self.step
        d: dict[Piece, int] = {}
        for k, node in enumerate(step.new):
            # A new state may be another one, too.
            loaded = self._new()
            self._emit("load", loaded, k)
            (piece,) = step.pieces.of[node]
            self._add(piece, d, loaded)
        for piece in step.backwards():
            node, k = piece
            if node in step.norms and not k:
                # The first row comes last, when all are known.
                self._pass_norm(node, d)
            elif piece in d and piece not in step.slots and node not in (*step.old, *step.norms):
                self._pass(piece, d)
        for piece, slot in step.slots.items():
            self._emit("gate", slot, d.get(piece, -1))
        for k, node in enumerate(step.old):
            # What goes to the hidden state through its weights alone is the caller's.
            if k or (node, 0) in d:
                self._emit("store", k, d.get((node, 0), -1))

    def _pass(self, piece: Piece, d: dict[Piece, int]) -> None:
        step, own, (node, k) = self.step, d[piece], piece
        if node in step.scaled:
            for source in step.scaled[node]:
                self.scales.append(Scale(piece, source))
                self._to(source, k, d, "scale", own, len(self.scales) - 1)
        elif node in step.linear:
            for source, factor in step.linear[node].items():
                self._to(source, k, d, "set", own, by=factor)
        else:
            for operand, multiplier in zip(node.args, self._multipliers[piece], strict=True):
                self._to(cast("fx.Node", operand), k, d, "multiply", own, multiplier)

    def _pass_norm(self, node: fx.Node, d: dict[Piece, int]) -> None:
        own = [(j, d[node, j]) for j in range(self._rows(node)) if (node, j) in d]
        norm = self._norms[node]
        for count, (j, each) in enumerate(own):
            self._emit("norm_sums", norm.numbers, each, norm.means[j], by=float(count == 0))
        for j, slope in enumerate(norm.slopes if own else ()):
            part = self._new()
            self._emit("norm_passed", part, d.get((node, j), -1), slope, norm.numbers, by=norm.share)
            self._add(self.step.pieces.of[node.all_input_nodes[0]][j], d, part)

    def _to(
        self, node: fx.Node, k: int, d: dict[Piece, int], what: str, a: int, b: int = 0, by: float = 1.0
    ) -> None:
        source = self.step.pieces.of[node][k]
        if what == "set" and by == 1:
            self._add(source, d, a)
        elif source in d:
            self._own(source, d)
            self._emit({"set": "add"}.get(what, f"{what}_add"), d[source], a, b, by=by)
        else:
            d[source] = self._new()
            self._emit(what, d[source], a, b, by=by)

    def _add(self, source: Piece, d: dict[Piece, int], register: int) -> None:
        """Add what is in a register; several may have it in common until one is added to."""
        if source in d:
            self._own(source, d)
            self._emit("add", d[source], register)
        else:
            d[source] = register

    def _own(self, source: Piece, d: dict[Piece, int]) -> None:
        if sum(each == d[source] for each in d.values()) > 1:
            common, d[source] = d[source], self._new()
            self._emit("set", d[source], common)


def program_of(step: CellGraph) -> Program | None:
    """Return the program of a cell, None for one that the library has no operations for."""
    try:
        return Program(step)
    except NoProgramError:
        return None


class ProgramSteps:
    """The steps of one sweep, in C.

    Args:
        function: of the library.
        program: of the cell.
        swept: the pairs.
        d: multipliers of the states, changed in place, (K, n, rows, H).
        gates: receives those of the gates, (places, K x n x rows, slots, H).

    """

    def __init__(
        self,
        function: Callable[..., None],
        program: Written,
        swept: Swept,
        d: Sequence[Tensor],
        gates: Tensor,
    ) -> None:
        scales = program.scales_now()
        operations = (_OperationStruct * len(program.operations))(
            *(_OperationStruct(*each) for each in program.operations)
        )
        x, x0 = ([each.contiguous() for each in side] for side in (swept.x, swept.x0))
        row_bytes = gates.shape[-1] * gates.element_size()
        arrays = [
            _array(ctypes.c_void_p, [side[k].data_ptr() + j * row_bytes for k, j in program.kept])
            for side in (x, x0)
        ]
        arrays.append(_array(ctypes.c_int64, [x[k].shape[-1] for k, _ in program.kept]))
        arrays += [_addresses(scales), _addresses(d)]
        facing = faced_rows(swept)
        # The library gets addresses only: what they belong to lives here.
        self._held = x, x0, list(d), gates, scales, operations, arrays, facing
        struct = _STRUCTS[gates.dtype]()
        struct.of = sweep_struct(swept, facing, gates, [gates.data_ptr()])
        struct.count, struct.once = len(operations), program.once
        struct.registers, struct.slots, struct.part = program.registers, gates.shape[-2], program.part
        struct.operations = ctypes.addressof(operations)
        struct.x, struct.x0, struct.widths, struct.scales, struct.states = map(ctypes.addressof, arrays)
        self._program = struct
        self._at = ctypes.byref(struct)
        self._function = function

    def __call__(self, t: int, place: int) -> None:
        """Run step ``t``; its gates go to ``place``."""
        self._function(self._at, t, place)


def _addresses(tensors: Sequence[Tensor]) -> Any:
    return _array(ctypes.c_void_p, [each.data_ptr() for each in tensors])


def _array(kind: Any, values: Sequence[int]) -> Any:
    return (kind * max(1, len(values)))(*values)
