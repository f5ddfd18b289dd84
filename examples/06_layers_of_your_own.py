"""Three layers of your own, and an operation without a rule: how they come in.

Run it with ``python examples/06_layers_of_your_own.py``. A peephole LSTM, a layer-norm LSTM and a minGRU,
each made of ordinary PyTorch, need nothing. What ``decompose`` cannot look into, a function with a gradient
of its own here, a compiled extension elsewhere, gets a replacement, which is held to the original, and its
atom a rule.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rewriter import Atom, DeepExplainer, decompose, register_rule

STEPS, INPUTS, HIDDEN = 12, 3, 8


class PeepholeLSTMCell(nn.Module):
    """Gates that see the cell state, too (Gers and Schmidhuber, 2000)."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(INPUTS, 4 * HIDDEN), nn.Linear(HIDDEN, 4 * HIDDEN, bias=False)
        self.peepholes = nn.Parameter(torch.randn(3, HIDDEN))

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step from (B, INPUTS) and two states (B, HIDDEN)."""
        i, f, g, o = (self.x(x) + self.h(h)).chunk(4, 1)
        of_i, of_f, of_o = self.peepholes
        c_new = torch.sigmoid(f + of_f * c) * c + torch.sigmoid(i + of_i * c) * torch.tanh(g)
        return torch.sigmoid(o + of_o * c_new) * torch.tanh(c_new), c_new


class LayerNormLSTMCell(nn.Module):
    """Normalises both parts of the gates and the cell state (Ba, Kiros and Hinton, 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = (nn.Linear(size, 4 * HIDDEN, bias=False) for size in (INPUTS, HIDDEN))
        self.of_x, self.of_h, self.of_c = (nn.LayerNorm(size * HIDDEN) for size in (4, 4, 1))

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step."""
        i, f, g, o = (self.of_x(self.x(x)) + self.of_h(self.h(h))).chunk(4, 1)
        c_new = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.of_c(c_new)), c_new


class MinGRUCell(nn.Module):
    """A gate and a candidate that see the input alone (Feng et al., 2024)."""

    def __init__(self) -> None:
        super().__init__()
        self.z, self.candidate = nn.Linear(INPUTS, HIDDEN), nn.Linear(INPUTS, HIDDEN)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor]:
        """Take one step."""
        z = torch.sigmoid(self.z(x))
        return ((1 - z) * h + z * self.candidate(x),)


class Swish(torch.autograd.Function):
    """Stands for what nobody can look into: ``x * sigmoid(x)`` with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return the value."""
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Return the gradient."""
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grads[0] * (s + x * s * (1 - s))


class SwishLayer(nn.Module):
    """The layer that a model uses."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x * sigmoid(x)``."""
        return Swish.apply(x)


class SwishAtom(Atom):
    """The same as one piece that a rule binds to."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x * sigmoid(x)``."""
        return x * torch.sigmoid(x)


class Net(nn.Module):
    """A loop over a cell, the layer and a Linear."""

    def __init__(self, cell: nn.Module, states: int) -> None:
        super().__init__()
        self.cell, self.states = cell, states
        self.swish, self.head = SwishLayer(), nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Classify by the last hidden state."""
        state = (torch.zeros(x.shape[0], HIDDEN),) * self.states
        for t in range(STEPS):
            state = self.cell(x[:, t], *state)
        return self.head(self.swish(state[0]))


def main() -> None:
    torch.manual_seed(0)
    # Without anything more: a function of each element, whose rule is the slope of its chord.
    register_rule(SwishAtom)
    x, background = torch.randn(4, STEPS, INPUTS), torch.randn(20, STEPS, INPUTS)
    for cell, states in ((PeepholeLSTMCell(), 2), (LayerNormLSTMCell(), 2), (MinGRUCell(), 1)):
        model = Net(cell, states).eval()
        decomposed = decompose(model, replacements={SwishLayer: lambda layer: SwishAtom()})
        values = DeepExplainer(decomposed, background, progress=False).shap_values(x)
        with torch.no_grad():
            change = model(x) - model(background).mean(0)
        error = abs(values.sum((1, 2)) - change.numpy()).max()
        print(f"{type(cell).__name__}: values {values.shape}, additivity error {error:.1e}")


if __name__ == "__main__":
    main()
