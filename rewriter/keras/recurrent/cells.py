"""The algebra of Keras' cells whose gates, or activations, are not those of torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from passes.leaves import Mul
from passes.recurrent.cells import GRUCellAtoms, LSTMCellAtoms, RNNCellAtoms
from passes.recurrent.gates import OrderedGates, linear_of
from passes.recurrent.recurrence import State
from rewriter.keras.activations import activation, activation_name
from rewriter.keras.installed import kind_of
from rewriter.keras.layers.contract import UnsupportedError
from rewriter.keras.weights import linear, parameter


class KerasLSTMCell(nn.Module):
    """One step of Keras' ``LSTMCell``; gates in the order ``i f c o``, which is torch's.

    Args:
        activation: makes the module for the candidate and the output.
        recurrent_activation: makes the module for each gate.

    Example:
        >>> import torch
        >>> cell = KerasLSTMCell(nn.Identity, nn.Sigmoid)
        >>> cell(torch.zeros(1, 8), torch.zeros(1, 8), torch.zeros(1, 2), torch.ones(1, 2))[1]
        tensor([[0.5000, 0.5000]])

    """

    states = 2
    gates = "ifco"

    def __init__(
        self, activation: Callable[[], nn.Module], recurrent_activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.input_gate = recurrent_activation()
        self.forget_gate = recurrent_activation()
        self.candidate = activation()
        self.output_gate = recurrent_activation()
        self.forget_gate_mul = Mul()
        self.input_gate_mul = Mul()
        self.output = activation()
        self.output_gate_mul = Mul()

    def forward(self, x: Tensor, h_gates: Tensor, h: Tensor, c: Tensor) -> State:
        """Return ``(h', c')``; ``x`` and ``h_gates`` are (B, 4H), ``c`` is (B, H), ``h`` is unused."""
        i, f, g, o = (x + h_gates).chunk(4, -1)
        kept = self.forget_gate_mul(self.forget_gate(f), c)
        c = kept + self.input_gate_mul(self.input_gate(i), self.candidate(g))
        return self.output_gate_mul(self.output_gate(o), self.output(c)), c


class KerasGRUCell(nn.Module):
    """One step of Keras' ``GRUCell`` with ``reset_after``; gates in Keras' order ``z r h``.

    Args:
        activation: makes the module for the candidate.
        recurrent_activation: makes the module for each gate.

    Example:
        >>> import torch
        >>> KerasGRUCell(nn.Tanh, nn.Sigmoid)(torch.zeros(1, 6), torch.zeros(1, 6), torch.ones(1, 2))
        (tensor([[0.5000, 0.5000]]),)

    """

    states = 1
    gates = "zrh"

    def __init__(
        self, activation: Callable[[], nn.Module], recurrent_activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.update_gate = recurrent_activation()
        self.reset_gate = recurrent_activation()
        self.reset_gate_mul = Mul()
        self.candidate = activation()
        self.update_gate_mul = Mul()

    def forward(self, x: Tensor, h_gates: Tensor, h: Tensor) -> State:
        """Return ``(h',)``; ``x`` and ``h_gates`` are (B, 3H), ``h`` is (B, H)."""
        x_z, x_r, x_h = x.chunk(3, -1)
        h_z, h_r, h_h = h_gates.chunk(3, -1)
        z = self.update_gate(x_z + h_z)
        r = self.reset_gate(x_r + h_r)
        n = self.candidate(x_h + self.reset_gate_mul(r, h_h))
        return (n + self.update_gate_mul(z, h - n),)


class ResetBeforeGRUCell(nn.Module):
    """One step of Keras' ``GRUCell`` with ``reset_after=False``: r acts on the state, before the weights.

    Args:
        gates_linear: from the state to z and r.
        candidate_linear: from the state after the reset to the candidate.
        activation: makes the module for the candidate.
        recurrent_activation: makes the module for each gate.

    Example:
        >>> import torch
        >>> linears = [nn.Linear(2, 4, bias=False), nn.Linear(2, 2, bias=False)]
        >>> cell = ResetBeforeGRUCell(*linears, nn.Tanh, nn.Sigmoid)
        >>> cell(torch.zeros(1, 6), torch.zeros(1, 2), torch.zeros(1, 2))[0].shape
        torch.Size([1, 2])

    """

    states = 1
    gates = "zrh"

    def __init__(
        self,
        gates_linear: nn.Linear,
        candidate_linear: nn.Linear,
        activation: Callable[[], nn.Module],
        recurrent_activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.gates_linear = gates_linear
        self.candidate_linear = candidate_linear
        self.update_gate = recurrent_activation()
        self.reset_gate = recurrent_activation()
        self.reset_gate_mul = Mul()
        self.candidate = activation()
        self.update_gate_mul = Mul()

    def forward(self, x: Tensor, before: Tensor, h: Tensor) -> State:
        """Return ``(h',)``; ``x`` is (B, 3H), ``before`` the state as it is, as ``h``, (B, H)."""
        x_z, x_r, x_h = x.chunk(3, -1)
        h_z, h_r = self.gates_linear(h).chunk(2, -1)
        z = self.update_gate(x_z + h_z)
        r = self.reset_gate(x_r + h_r)
        n = self.candidate(x_h + self.candidate_linear(self.reset_gate_mul(r, h)))
        return (n + self.update_gate_mul(z, h - n),)


class KerasRNNCell(nn.Module):
    """One step of Keras' ``SimpleRNNCell``.

    Args:
        activation: makes its module.

    Example:
        >>> import torch
        >>> KerasRNNCell(nn.Identity)(torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1, 2))
        (tensor([[2., 2.]]),)

    """

    states = 1
    gates = "h"

    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.activation = activation()

    def forward(self, x: Tensor, h_gates: Tensor, h: Tensor) -> State:
        """Return ``(h',)``; all are (B, H), ``h`` is unused."""
        return (self.activation(x + h_gates),)


class CellParts(NamedTuple):
    """What a recurrence is made of.

    Args:
        input: from the input to the gates.
        hidden: from the state to the gates.
        cell: the rest.
        size: of each state.

    """

    input: nn.Module
    hidden: nn.Module
    cell: nn.Module
    size: int


def cell_parts(cell: Any) -> CellParts:
    """Take a cell of Keras apart.

    Raises:
        UnsupportedError: for a cell that a user wrote, or one that has not been built.

    """
    kind = kind_of(cell)
    if kind not in _PARTS:
        raise UnsupportedError(
            f"its cell, a {type(cell).__name__}, is not one of {', '.join(map(str, _PARTS))}, and no torch "
            "module is known for it"
        )
    if not cell.built:
        raise UnsupportedError("it has no weights yet: call it once")
    return _PARTS[kind](cell)


def _lstm(cell: Any) -> CellParts:
    atoms = LSTMCellAtoms() if _is_torchs(cell) else KerasLSTMCell(*_activations(cell))
    return CellParts(linear(cell.kernel, cell.bias), linear(cell.recurrent_kernel, None), atoms, cell.units)


def _is_torchs(cell: Any) -> bool:
    names = (activation_name(cell.activation), activation_name(cell.recurrent_activation))
    return names == ("tanh", "sigmoid")


def _gru(cell: Any) -> CellParts:
    biases: tuple[Any, Any] = (None, None)
    if cell.use_bias:
        biases = (
            (parameter(cell.bias, _row(0)), parameter(cell.bias, _row(1)))
            if cell.reset_after
            else (cell.bias, None)
        )
    of_input = linear(cell.kernel, biases[0])
    if cell.reset_after:
        hidden = linear(cell.recurrent_kernel, biases[1])
        if _is_torchs(cell):
            order = (1, 0, 2)
            parts = OrderedGates(of_input, order), OrderedGates(hidden, order)
            return CellParts(*parts, GRUCellAtoms(), cell.units)
        return CellParts(of_input, hidden, KerasGRUCell(*_activations(cell)), cell.units)
    kernel, size = cell.recurrent_kernel, 2 * cell.units
    gates = linear_of(parameter(kernel, lambda k: k[:, :size].t()), None)
    candidate = linear_of(parameter(kernel, lambda k: k[:, size:].t()), None)
    return CellParts(
        of_input, nn.Identity(), ResetBeforeGRUCell(gates, candidate, *_activations(cell)), cell.units
    )


def _row(index: int) -> Callable[[Tensor], Tensor]:
    return lambda bias: bias[index]


def _simple(cell: Any) -> CellParts:
    name = activation_name(cell.activation)
    atoms = (
        RNNCellAtoms(name) if name in ("tanh", "relu") else KerasRNNCell(lambda: activation(cell.activation))
    )
    return CellParts(linear(cell.kernel, cell.bias), linear(cell.recurrent_kernel, None), atoms, cell.units)


def _activations(cell: Any) -> tuple[Callable[[], nn.Module], Callable[[], nn.Module]]:
    return lambda: activation(cell.activation), lambda: activation(cell.recurrent_activation)


_PARTS: dict[str | None, Callable[[Any], CellParts]] = {
    "LSTMCell": _lstm,
    "GRUCell": _gru,
    "SimpleRNNCell": _simple,
}
