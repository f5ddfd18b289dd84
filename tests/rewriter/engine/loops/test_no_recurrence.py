"""What comes again in a graph and is no recurrence that can be rolled is explained step by step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer
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


class TwoSequences(Loop):
    """Parts of two sequences."""

    def forward(self, x: Tensor) -> Tensor:
        (h, _), other = self.start(x), torch.tanh(x)
        for t in range(STEPS):
            h = torch.tanh(self.z(x[:, t]) + self.c(other[:, t]) + self.hz(h))
        return self.head(h)


class OneStepAgain(Loop):
    """Each step takes the same part."""

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.start(x)
        for _ in range(STEPS):
            h = torch.tanh(self.z(x[:, 2]) + self.hz(h))
        return self.head(h)


class AnyOrder(Loop):
    """Parts that are not equally far apart."""

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.start(x)
        for t in (0, 1, 4, 2, 5, 3):
            h = torch.tanh(self.z(x[:, t]) + self.hz(h))
        return self.head(h)


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


class OfWhatIsMade(Loop):
    """A Linear of what another one makes of the sequence."""

    def step(self, x: Tensor, *state: Tensor) -> State:
        h, c = state
        return torch.tanh(self.hr(torch.relu(self.z(x))) + self.hz(h)), c + h


class GivenAsItIs(Loop):
    """A state that is what a Linear gives."""

    def step(self, x: Tensor, *state: Tensor) -> State:
        return torch.tanh(self.z(x) + self.hz(state[1])), self.c(x)


class OfAState(Loop):
    """A Linear of what is made of a state."""

    def step(self, x: Tensor, *state: Tensor) -> State:
        h, c = state
        return torch.tanh(self.z(x) + self.hz(torch.tanh(h))), c + h


LOOPS: dict[str, Callable[[], nn.Module]] = {
    "nothing handed on": Each,
    "two steps before": TwoBefore,
    "two sequences": TwoSequences,
    "one part": OneStepAgain,
    "any order": AnyOrder,
    "both states": OfBothStates,
    "joined in rows": JoinedInRows,
    "a Linear of a Linear": OfWhatIsMade,
    "a state of a Linear": GivenAsItIs,
    "a Linear of a function of a state": OfAState,
}


@pytest.mark.parametrize("name", LOOPS)
def test_explained_step_by_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LOOPS[name]().double().eval()
    x, background = data()
    explainer = DeepExplainer(model, background)
    assert not loops_in(explainer._target.model)
    expected = step_by_step(model, background, monkeypatch).shap_values(x)
    np.testing.assert_allclose(
        explainer.shap_values(x), expected, rtol=0, atol=1e-12 * np.abs(expected).max()
    )
