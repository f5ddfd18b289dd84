"""What comes again in a graph and is no recurrence that can be rolled is explained step by step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import Atom, DeepExplainer, register_rule
from tests.rewriter.engine.loops.models import STEPS, Loop, State, data
from tests.rewriter.engine.loops.step_by_step import loops_in, step_by_step


class Each(Loop):
    """A Linear of each step, and nothing handed on."""

    def forward(self, x: Tensor) -> Tensor:
        steps = [torch.tanh(self.z(x[:, t])) for t in range(STEPS)]
        return self.head(torch.stack(steps).mean(0))


class TwoBefore(Loop):
    """A state of two steps before."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.start(x)
        for t in range(STEPS):
            a, b = b, torch.tanh(self.z(x[:, t]) + self.hz(a) + 0.5 * b)
        return self.head(b)


class OfBothStates(Loop):
    """Linears of both states."""

    def step(self, x: Tensor, *state: Tensor) -> State:
        h, c = state
        return torch.tanh(self.z(x) + self.hz(h) + c), torch.tanh(self.c(x) + self.hr(c))


class JoinedInRows(Loop):
    """What a step takes and a state are joined as rows."""

    def step(self, x: Tensor, *state: Tensor) -> State:
        h, c = state
        both = self.hz(torch.cat([torch.tanh(self.z(x)), h], 0))[: len(x)]
        return torch.tanh(both + self.c(x)), c + h


class GivenAsItIs(Loop):
    """A state that is what a Linear gives."""

    def step(self, x: Tensor, *state: Tensor) -> State:
        return torch.tanh(self.z(x) + self.hz(state[1])), self.c(x)


class OfAState(Loop):
    """A Linear of what is made of a state."""

    def step(self, x: Tensor, *state: Tensor) -> State:
        h, c = state
        return torch.tanh(self.z(x) + self.hz(torch.tanh(h))), c + h


class Scaled(Atom):
    """An atom whose class does not show what it holds."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self.factor)


class AtomOfEachStep(Loop):
    """An atom of its own in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.atoms = nn.ModuleList([Scaled(1 + 0.1 * t) for t in range(STEPS)])

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.start(x)
        for t, atom in enumerate(self.atoms):
            h = atom(self.z(x[:, t]) + self.hz(h))
        return self.head(h)


class OtherArrangement(Loop):
    """The same parts, in another arrangement in every second step."""

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.start(x)
        for t in range(STEPS):
            a, b = self.z(x[:, t]), self.hz(h)
            p, q, r = torch.tanh(torch.cat([a, b, a] if t % 2 else [a, b, b], 1)).chunk(3, 1)
            h = p * q + r
        return self.head(h)


LOOPS: dict[str, Callable[[], nn.Module]] = {
    "nothing handed on": Each,
    "two steps before": TwoBefore,
    "both states": OfBothStates,
    "joined in rows": JoinedInRows,
    "a state of a Linear": GivenAsItIs,
    "a Linear of a function of a state": OfAState,
    "an atom of each step": AtomOfEachStep,
    "another arrangement": OtherArrangement,
}


@pytest.mark.parametrize("name", LOOPS)
def test_explained_step_by_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    register_rule(Scaled)
    model = LOOPS[name]().double().eval()
    x, background = data()
    explainer = DeepExplainer(model, background)
    assert not loops_in(explainer._target.model)
    expected = step_by_step(model, background, monkeypatch).shap_values(x)
    np.testing.assert_allclose(
        explainer.shap_values(x), expected, rtol=0, atol=1e-12 * np.abs(expected).max()
    )
