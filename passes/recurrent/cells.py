"""The algebra of the recurrent cells, as plain PyTorch over atoms.

A cell takes the pre-activations of its gates, split in the part that comes from the input and the
part that comes from the hidden state (biases included), and the state; it returns the new state.
The weights live in the layer that owns the cell. Formulas: PyTorch's documentation of ``nn.LSTM``,
``nn.GRU`` and ``nn.RNN``.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from passes.leaves import Mul, ReLUAtom, SigmoidAtom, TanhAtom

State = tuple[Tensor, ...]


class _Atoms:
    """A cell's atoms as plain attributes.

    Each step looks them up here, because a lookup by ``nn.Module`` costs as much as a small kernel.
    """

    def __init__(self, **atoms: Any) -> None:
        self.__dict__.update(atoms)


class LSTMCellAtoms(nn.Module):
    """One LSTM step; gates in torch's order ``i f g o``.

    Example:
        >>> import torch
        >>> h, c = LSTMCellAtoms()(torch.zeros(1, 8), torch.zeros(1, 8), torch.zeros(1, 2), torch.ones(1, 2))
        >>> c
        tensor([[0.5000, 0.5000]])

    """

    states = 2
    gates = "ifgo"

    def __init__(self) -> None:
        super().__init__()
        self.input_gate_sigmoid = SigmoidAtom()
        self.forget_gate_sigmoid = SigmoidAtom()
        self.cell_gate_tanh = TanhAtom()
        self.output_gate_sigmoid = SigmoidAtom()
        self.forget_gate_mul = Mul()
        self.input_gate_mul = Mul()
        self.cell_state_tanh = TanhAtom()
        self.output_gate_mul = Mul()

    def forward(self, x: Tensor, h_gates: Tensor, h: Tensor, c: Tensor) -> State:
        """Return ``(h', c')``; ``x`` and ``h_gates`` are (B, 4H), ``c`` is (B, H), ``h`` is unused."""
        at: Any = _Atoms(**self._modules)
        i, f, g, o = (x + h_gates).chunk(4, -1)
        kept = at.forget_gate_mul(at.forget_gate_sigmoid(f), c)
        c = kept + at.input_gate_mul(at.input_gate_sigmoid(i), at.cell_gate_tanh(g))
        return at.output_gate_mul(at.output_gate_sigmoid(o), at.cell_state_tanh(c)), c


class GRUCellAtoms(nn.Module):
    """One GRU step; gates in torch's order ``r z n``, ``r`` acting after the hidden Linear.

    The update ``(1 - z) n + z h`` is written ``n + z (h - n)``: one product instead of two, and the
    same attributions, because the product rule is bilinear.

    Example:
        >>> import torch
        >>> GRUCellAtoms()(torch.zeros(1, 6), torch.zeros(1, 6), torch.ones(1, 2))
        (tensor([[0.5000, 0.5000]]),)

    """

    states = 1
    gates = "rzn"

    def __init__(self) -> None:
        super().__init__()
        self.reset_gate_sigmoid = SigmoidAtom()
        self.update_gate_sigmoid = SigmoidAtom()
        self.reset_gate_mul = Mul()
        self.new_gate_tanh = TanhAtom()
        self.update_gate_mul = Mul()

    def forward(self, x: Tensor, h_gates: Tensor, h: Tensor) -> State:
        """Return ``(h',)``; ``x`` and ``h_gates`` are (B, 3H), ``h`` is (B, H)."""
        at: Any = _Atoms(**self._modules)
        x_r, x_z, x_n = x.chunk(3, -1)
        h_r, h_z, h_n = h_gates.chunk(3, -1)
        r = at.reset_gate_sigmoid(x_r + h_r)
        z = at.update_gate_sigmoid(x_z + h_z)
        n = at.new_gate_tanh(x_n + at.reset_gate_mul(r, h_n))
        return (n + at.update_gate_mul(z, h - n),)


class RNNCellAtoms(nn.Module):
    """One Elman step, with tanh or relu.

    Args:
        nonlinearity: ``"tanh"`` or ``"relu"``.

    Example:
        >>> import torch
        >>> RNNCellAtoms("relu")(torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1, 2))
        (tensor([[2., 2.]]),)

    """

    states = 1
    gates = "h"

    def __init__(self, nonlinearity: str) -> None:
        super().__init__()
        self.nonlinearity = nonlinearity
        if nonlinearity == "tanh":
            self.hidden_state_tanh = TanhAtom()
        else:
            self.hidden_state_relu = ReLUAtom()

    def forward(self, x: Tensor, h_gates: Tensor, h: Tensor) -> State:
        """Return ``(h',)``; all are (B, H), ``h`` is unused."""
        atom = self.hidden_state_tanh if self.nonlinearity == "tanh" else self.hidden_state_relu
        return (atom(x + h_gates),)


CellAtoms = LSTMCellAtoms | GRUCellAtoms | RNNCellAtoms


def cell_atoms_of(layer: nn.RNNBase | nn.RNNCellBase) -> CellAtoms:
    """Return the atoms of one step of a layer or cell of torch's.

    Example:
        >>> type(cell_atoms_of(nn.GRU(3, 2))).__name__, type(cell_atoms_of(nn.LSTMCell(3, 2))).__name__
        ('GRUCellAtoms', 'LSTMCellAtoms')

    """
    if isinstance(layer, nn.LSTM | nn.LSTMCell):
        return LSTMCellAtoms()
    if isinstance(layer, nn.GRU | nn.GRUCell):
        return GRUCellAtoms()
    return RNNCellAtoms(cast("nn.RNN", layer).nonlinearity)
