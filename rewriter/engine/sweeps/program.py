"""The step of a derived sweep written down as operations on rows, which a library in C carries out.

A cell's graph read backwards is a list of operations on rows of H numbers: slopes and means of what is kept,
for each pair once; then, for each output, products and sums from the new states to the gates and the old
states. The rules of atoms that the library knows are the same as in torch, written a second time; a cell with
others has no program.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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
from rewriter.engine.sweeps.sweep import Swept

# What an operation does, in the order of the library.
_WHAT = (
    *("tanh_slope", "sigmoid_slope", "relu_slope", "mean", "load", "set", "add", "multiply", "multiply_add"),
    *("scale", "scale_add", "store", "gate"),
)
_SLOPES: Mapping[Multipliers, str] = {
    tanh_multiplier: "tanh_slope",
    sigmoid_multiplier: "sigmoid_slope",
    relu_multiplier: "relu_slope",
}
# Registers are on the stack of a thread, 128 numbers each.
_MOST_REGISTERS = 256


class _Operation(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("what", "to", "a", "b")] + [("by", ctypes.c_double)]


def _program_struct(dtype: torch.dtype) -> type[ctypes.Structure]:
    fields: list[tuple[str, Any]] = [("of", SWEEPS[dtype])]
    fields += [(name, ctypes.c_int64) for name in ("count", "once", "registers", "slots")]
    fields += [(name, ctypes.c_void_p) for name in ("operations", "x", "x0", "scales", "states")]
    return type("Program", (ctypes.Structure,), {"_fields_": fields})


_STRUCTS = {dtype: _program_struct(dtype) for dtype in (torch.float32, torch.float64)}


class Scale(NamedTuple):
    """Numbers of each feature, which hang on parameters: by what call, and of which operand."""

    call: fx.Node
    operand: fx.Node


class Program:
    """What a step of the sweep of a cell does.

    Args:
        step: the cell's graph.

    Raises:
        LookupError: for a cell that the library has no operations for.

    Example:
        >>> from passes.recurrent.cells import RNNCellAtoms
        >>> program = Program(CellGraph(RNNCellAtoms("tanh")))
        >>> [_WHAT[each[0]] for each in program.operations]
        ['tanh_slope', 'load', 'multiply', 'gate']

    """

    def __init__(self, step: CellGraph) -> None:
        self.step = step
        self.operations: list[tuple[int, int, int, int, float]] = []
        self.scales: list[Scale] = []
        self.registers = 0
        kept = {node: k for k, node in enumerate(step.kept)}
        self._multipliers = {node: self._slopes(node, kept) for node in step.atoms}
        self.once = len(self.operations)
        self._read_backwards()
        if self.registers > _MOST_REGISTERS:
            raise LookupError("too many registers")

    def _emit(self, what: str, to: int, a: int = 0, b: int = 0, by: float = 1.0) -> None:
        self.operations.append((_WHAT.index(what), to, a, b, by))

    def _new(self) -> int:
        self.registers += 1
        return self.registers - 1

    def _slopes(self, node: fx.Node, kept: Mapping[fx.Node, int]) -> list[int]:
        """Write the multipliers of an atom's operands into registers."""
        rule = rule_of(self.step.model.get_submodule(str(node.target)))
        assert rule is not None
        operands = [kept[each] for each in node.all_input_nodes]
        slope = None if rule.multipliers is None else _SLOPES.get(rule.multipliers)
        if slope is not None:
            to = self._new()
            self._emit(slope, to, operands[0], kept[node])
            return [to]
        if rule.multipliers is not product_multipliers or len(node.args) != 2:
            raise LookupError(f"{node.target} has a rule that the library does not know")
        found = []
        for other in reversed(node.args):
            found.append(self._new())
            self._emit("mean", found[-1], kept[other])  # type: ignore[index]
        return found

    def _read_backwards(self) -> None:
        step = self.step
        d: dict[fx.Node, int] = {}
        for k, node in enumerate(step.new):
            # A new state may be another one, too.
            loaded = self._new()
            self._emit("load", loaded, k)
            if node in d:
                self._emit("add", d[node], loaded)
            else:
                d[node] = loaded
        gates: dict[int, int] = {}
        for node in reversed(step.graph.nodes):
            if node not in d or not step.flow.varies(node):
                continue
            if node in step.slots:
                slot = step.slots[node]
                if slot in gates:
                    self._emit("add", gates[slot], d[node])
                else:
                    gates[slot] = d[node]
            elif node not in step.old:
                self._pass(node, d)
        for slot in range(step.gates * len(step.entrances)):
            self._emit("gate", slot, gates.get(slot, -1))
        for k, node in enumerate(step.old):
            # What goes to the hidden state through its weights alone is the caller's.
            if k or node in d:
                self._emit("store", k, d.get(node, -1))

    def _pass(self, node: fx.Node, d: dict[fx.Node, int]) -> None:
        step, own = self.step, d[node]
        if node in step.scaled:
            for source in step.scaled[node]:
                self.scales.append(Scale(node, source))
                self._to(source, d, "scale", own, len(self.scales) - 1)
        elif node in step.linear:
            for source, factor in step.linear[node].items():
                self._to(source, d, "set", own, by=factor)
        elif node in self._multipliers:
            for operand, multiplier in zip(node.args, self._multipliers[node], strict=True):
                self._to(operand, d, "multiply", own, multiplier)
        else:
            raise LookupError(f"{node} is taken whole")

    def _to(self, source: Any, d: dict[fx.Node, int], what: str, a: int, b: int = 0, by: float = 1.0) -> None:
        if source in d:
            self._emit({"set": "add"}.get(what, f"{what}_add"), d[source], a, b, by)
        else:
            d[source] = self._new()
            self._emit(what, d[source], a, b, by)

    def scales_now(self) -> list[Tensor]:
        """Return the numbers that hang on parameters, as these are now."""
        found = {node: self.step.factors(node) for node in self.step.scaled}
        return [found[each.call][each.operand].contiguous() for each in self.scales]


def program_of(step: CellGraph) -> Program | None:
    """Return the program of a cell, None for one that the library has no operations for."""
    try:
        return Program(step)
    except LookupError:
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
        program: Program,
        swept: Swept,
        d: Sequence[Tensor],
        gates: Tensor,
    ) -> None:
        scales = program.scales_now()
        operations = (_Operation * len(program.operations))(
            *(_Operation(*each) for each in program.operations)
        )
        x, x0 = ([each.contiguous() for each in side] for side in (swept.x, swept.x0))
        arrays = [_addresses(x), _addresses(x0)]
        arrays += [_addresses(scales), _addresses(d)]
        facing = faced_rows(swept)
        # The library gets addresses only: what they belong to lives here.
        self._held = x, x0, list(d), gates, scales, operations, arrays, facing
        struct = _STRUCTS[gates.dtype]()
        struct.of = sweep_struct(swept, facing, gates, [gates.data_ptr()])
        struct.count, struct.once = len(operations), program.once
        struct.registers, struct.slots = program.registers, gates.shape[-2]
        struct.operations = ctypes.addressof(operations)
        struct.x, struct.x0, struct.scales, struct.states = map(ctypes.addressof, arrays)
        self._program = struct
        self._at = ctypes.byref(struct)
        self._function = function

    def __call__(self, t: int, place: int) -> None:
        """Run step ``t``; its gates go to ``place``."""
        self._function(self._at, t, place)


def _addresses(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * max(1, len(tensors)))(*(each.data_ptr() for each in tensors))
