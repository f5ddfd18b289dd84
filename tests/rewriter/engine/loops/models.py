"""Loops of users' own, by what they are called in tests, with how many of them are rolled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

INPUTS, HIDDEN, STEPS = 3, 4, 6
State = tuple[Tensor, ...]


class Loop(nn.Module):
    """What the loops below share: parts of a cell, and a head."""

    states = 2

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(INPUTS, 4 * HIDDEN), nn.Linear(HIDDEN, 4 * HIDDEN, bias=False)
        self.z, self.c = nn.Linear(INPUTS, HIDDEN), nn.Linear(INPUTS, HIDDEN)
        self.hz, self.hr = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.peepholes = nn.Parameter(torch.randn(3, HIDDEN))
        self.norm, self.head = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, 2)

    def start(self, x: Tensor) -> State:
        return (torch.zeros(x.shape[0], HIDDEN, dtype=x.dtype),) * self.states

    def step(self, x: Tensor, *state: Tensor) -> State:
        h, c = state
        i, f, g, o = (self.x(x) + self.h(h)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def forward(self, x: Tensor) -> Tensor:
        state = self.start(x)
        for t in range(STEPS):
            state = self.step(x[:, t], *state)
        return self.head(state[0])


class Peephole(Loop):
    def step(self, x: Tensor, *state: Tensor) -> State:
        h, c = state
        of_i, of_f, of_o = self.peepholes
        i, f, g, o = (self.x(x) + self.h(h)).chunk(4, 1)
        new = torch.sigmoid(f + of_f * c) * c + torch.sigmoid(i + of_i * c) * torch.tanh(g)
        return torch.sigmoid(o + of_o * new) * torch.tanh(new), new


class MinGRU(Loop):
    states = 1

    def step(self, x: Tensor, *state: Tensor) -> State:
        z = torch.sigmoid(self.z(x))
        return ((1 - z) * state[0] + z * self.c(x),)


class AllOfAPart(Loop):
    """Takes parts with all of what they hold."""

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.start(x)
        for t in range(STEPS):
            h = torch.tanh(self.z(x[:, t, :]) + self.hz(h))
        return self.head(h)


class GRUFromALayer(Loop):
    """Begins with what varies, and takes all outputs."""

    def forward(self, x: Tensor) -> Tensor:
        h, outputs = self.z(x[:, 0]), []
        for t in range(STEPS):
            r = torch.sigmoid(self.z(x[:, t]) + self.hz(h))
            h = r * h + (1 - r) * torch.tanh(self.c(x[:, t]) + r * self.hr(h))
            outputs.append(h)
        return self.head(torch.stack(outputs, 1)).sum(1)


class Backwards(Loop):
    """From the last step to the first, with a head at each, whose sum is handed on."""

    def forward(self, x: Tensor) -> Tensor:
        state, total = self.start(x), torch.zeros(x.shape[0], 2, dtype=x.dtype)
        for t in reversed(range(STEPS)):
            state = self.step(x[:, t], *state)
            total = total + torch.tanh(self.head(state[0]))
        return total


class TimeFirst(Loop):
    def forward(self, x: Tensor) -> Tensor:
        state, x = self.start(x), x.transpose(0, 1)
        for t in range(STEPS):
            state = self.step(x[t], *state)
        return self.head(state[0] + state[1])


class Unbound(Loop):
    def forward(self, x: Tensor) -> Tensor:
        state, steps = self.start(x), x.unbind(1)
        for t in range(STEPS):
            state = self.step(steps[t], *state)
        return self.head(state[0] * state[1])


class EverySecond(Loop):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, x], 1)
        state = self.start(x)
        for t in range(0, 2 * STEPS, 2):
            state = self.step(x[:, t], *state)
            state = (state[0], 0.9 * state[1])
        return self.head(state[0])


class OneState(Loop):
    """Begins with a state that is one for all rows."""

    def start(self, x: Tensor) -> State:
        return torch.full((1, HIDDEN), 0.5, dtype=x.dtype), torch.ones(HIDDEN, dtype=x.dtype)


class Rows(Loop):
    """Each sample is several sequences."""

    states = 1

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([x, x.flip(1)], 2)
        h = self.z(x[:, 0])
        for t in range(STEPS):
            h = torch.tanh(self.c(x[:, t]) + self.hz(h))
        return self.head(h).sum(1)


class Cells(Loop):
    """A cell of torch's."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell = getattr(nn, kind)(INPUTS, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        hx, outputs = None, []
        for t in range(STEPS):
            hx = self.cell(x[:, t], hx)
            outputs.append(hx[0] if isinstance(self.cell, nn.LSTMCell) else hx)
        return self.head(torch.stack(outputs).mean(0))


class Joined(Loop):
    """A Linear of what a step takes and the state, side by side."""

    def __init__(self, state_first: bool) -> None:
        super().__init__()
        self.state_first = state_first
        self.both = nn.Linear(INPUTS + HIDDEN, 4 * HIDDEN)

    def step(self, x: Tensor, *state: Tensor) -> State:
        h, c = state
        both = torch.cat([h, x] if self.state_first else [x, h], dim=1)
        i, f, g, o = self.both(both).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class Stack(Loop):
    """A second loop over what the first gives."""

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = self.start(x), []
        for t in range(STEPS):
            state = self.step(x[:, t], *state)
            outputs.append(state[0])
        sequence = torch.stack(outputs, 1)
        h = self.start(x)[0]
        for t in range(STEPS):
            h = torch.tanh(self.hz(sequence[:, t]) + self.hr(h))
        return self.head(h)


class OfEachStep(Loop):
    """Takes the cell state of each step, too."""

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = self.start(x), []
        for t in range(STEPS):
            state = self.step(x[:, t], *state)
            outputs.append(state[1])
        return self.head(torch.stack(outputs).sum(0))


class Normed(Loop):
    """Its norm mixes the elements of a state."""

    def step(self, x: Tensor, *state: Tensor) -> State:
        h, c = super().step(x, *state)
        return h, self.norm(c)


class LayerNormLSTM(Loop):
    """Norms of both parts of the gates as wholes, and of the cell state (Ba, Kiros and Hinton, 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.of_x, self.of_h = nn.LayerNorm(4 * HIDDEN), nn.LayerNorm(4 * HIDDEN)
        for each in (self.of_x, self.of_h, self.norm):
            nn.init.normal_(each.weight)
            nn.init.normal_(each.bias)

    def step(self, x: Tensor, *state: Tensor) -> State:
        h, c = state
        i, f, g, o = (self.of_x(self.x(x)) + self.of_h(self.h(h))).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.norm(c)), c


class NormOfTheSum(LayerNormLSTM):
    """One norm of all gates together, without weights, and three gates that are squashed together."""

    def step(self, x: Tensor, *state: Tensor) -> State:
        h, c = state
        gates = nn.functional.layer_norm(self.x(x) + self.h(h), (4 * HIDDEN,))
        i, f, o = torch.sigmoid(gates[:, : 3 * HIDDEN]).chunk(3, 1)
        c = f * c + i * torch.tanh(gates[:, 3 * HIDDEN :])
        return o * torch.tanh(c), c


class NormOfEachGate(Loop):
    """Another kind of norm, of each gate by itself, and one of them unused."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(HIDDEN) for _ in range(3))

    def step(self, x: Tensor, *state: Tensor) -> State:
        h, c = state
        _, f, g, o = (self.x(x) + self.h(h)).split(HIDDEN, -1)
        f, g, o = self.norms[0](f), self.norms[1](g), self.norms[2](o)
        c = torch.sigmoid(f) * c + torch.tanh(g)
        return torch.sigmoid(o) * c, c


class HalfUsedNorm(LayerNormLSTM):
    """Of what a norm gives a part is used, the others only go into its mean."""

    def step(self, x: Tensor, *state: Tensor) -> State:
        h, c = state
        _, f, _, o = self.of_h(self.x(x) + self.h(h)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.tanh(o)
        return c, c


class Softmaxed(Loop):
    """Softmax mixes the elements, too."""

    def step(self, x: Tensor, *state: Tensor) -> State:
        h, c = super().step(x, *state)
        return h, c.softmax(-1)


class NormOfMore(Loop):
    """A norm, and what the library has no form of."""

    def step(self, x: Tensor, *state: Tensor) -> State:
        h, c = super().step(x, *state)
        return nn.functional.softplus(h), self.norm(c)


class Changing(Loop):
    """No two steps are the same."""

    states = 1

    def forward(self, x: Tensor) -> Tensor:
        (h,) = self.start(x)
        for t in range(STEPS):
            h = torch.tanh(self.z(x[:, t]) + self.hz(h)) + 0.5 * h * (t + 1)
        return self.head(h)


class Once(Loop):
    """Layers before the loop and behind it, and one that a single step of it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.inside = nn.Linear(INPUTS, INPUTS), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        x, state = torch.tanh(self.before(torch.cat([x, x], 1))), self.start(x)
        for t in range(2 * STEPS):
            h, c = self.step(x[:, t], *state)
            state = (self.inside(h) if t == STEPS else h), c
        return self.head(state[0])


ROLLED: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "LSTM": (Loop, 1),
    "peephole": (Peephole, 1),
    "minGRU": (MinGRU, 1),
    "GRU": (GRUFromALayer, 1),
    "all of a part": (AllOfAPart, 1),
    "backwards": (Backwards, 1),
    "time first": (TimeFirst, 1),
    "unbound": (Unbound, 1),
    "every second step": (EverySecond, 1),
    "LSTMCell": (lambda: Cells("LSTMCell"), 1),
    "GRUCell": (lambda: Cells("GRUCell"), 1),
    "RNNCell": (lambda: Cells("RNNCell"), 1),
    "two loops": (Stack, 2),
    "input and state joined": (lambda: Joined(False), 1),
    "state and input joined": (lambda: Joined(True), 1),
    "one state": (OneState, 1),
    "several sequences a sample": (Rows, 1),
    "a norm": (Normed, 1),
    "layer-norm LSTM": (LayerNormLSTM, 1),
    "a norm of all gates": (NormOfTheSum, 1),
    "a norm of each gate": (NormOfEachGate, 1),
    "a norm that is half used": (HalfUsedNorm, 1),
    # These are explained step by step.
    "cell state of each step": (OfEachStep, 0),
    "softmax": (Softmaxed, 0),
    "a norm and softplus": (NormOfMore, 0),
    "changing": (Changing, 0),
}


def data() -> tuple[Tensor, Tensor]:
    x, background = torch.randn(5, STEPS, INPUTS), torch.randn(7, STEPS, INPUTS)
    return x.double(), background.double()
