"""What hangs on sizes, or on arguments that are not given, is written out for example inputs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from passes.errors import FixedSizeError
from rewriter import Report, decompose, unroll

STEPS = 5


class Loop(nn.Module):
    """Runs a function of itself."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run = run
        self.x, self.h, self.cell = nn.Linear(3, 4), nn.Linear(4, 4), nn.GRUCell(3, 4)

    def forward(self, x: Tensor, *rest: Any) -> Any:
        return self.run(self, x, *rest)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.x(x) + self.h(h))

    def over(self, parts: Any) -> Tensor:
        h: Any = None
        for each in parts:
            h = self.cell(each, h)
        return h


def by_condition(self: Loop, x: Tensor) -> Tensor:
    t, h = 0, x.new_zeros(x.shape[0], 4)
    while t < x.shape[1]:
        h, t = self.step(x[:, t], h), t + 1
    return h


def unpacked(self: Loop, x: Tensor) -> Tensor:
    rows, steps, _ = x.shape
    h = torch.zeros(rows, 4)
    for t in range(steps - 1, -1, -1):
        h = self.step(x[:, t], h)
    return h


def into_a_list(self: Loop, x: Tensor) -> Tensor:
    states: list[Any] = [None] * x.size(1)
    for t in range(x.size(1)):
        states[t] = self.step(x[:, t], states[t - 1] if t else torch.zeros_like(self.x(x[:, 0])))
    return torch.stack(states, 1)


def of_a_length(self: Loop, x: Tensor) -> Tensor:
    # An instruction for each length.
    return self.over(x.unbind(1)) if x.shape[1] in {4, STEPS} else self.over([x[:, 0]])


LOOPS: dict[str, Callable[..., Any]] = {
    "shape": lambda self, x: self.over(x[:, t] for t in range(x.shape[1])),
    "size": lambda self, x: self.over(x[:, t] for t in range(x.size(-2))),
    "unbind": lambda self, x: self.over(x.unbind(1)),
    "enumerate": lambda self, x: self.over(each for _, each in enumerate(x.transpose(0, 1))),
    "zip": lambda self, x: self.over(a + b for a, b in zip(x.unbind(1), x.flip(1).unbind(1), strict=True)),
    "len": lambda self, x: self.over(x[:, t] for t in range(len(x[0]))),
    "split": lambda self, x: self.over(each.squeeze(1) for each in x.split(1, 1)),
    "while": by_condition,
    "unpacked": unpacked,
    "a list": into_a_list,
    "dimensions": lambda self, x: self.over(x.unbind(1)) if x.dim() == 3 else self.over([x]),
    "a set": of_a_length,
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_is_written_out_for_the_example(name: str) -> None:
    model, x = Loop(LOOPS[name]), torch.randn(3, STEPS, 3)
    flat = decompose(model, x)
    assert Report.of(flat).islands == {}
    assert isinstance(flat, fx.GraphModule)
    # Any number of rows, one among them.
    for rows in (1, 3, 8):
        other = torch.randn(rows, STEPS, 3)
        torch.testing.assert_close(flat(other), model(other), rtol=0, atol=1e-6)
        torch.testing.assert_close(pickle.loads(pickle.dumps(flat))(other), model(other), rtol=0, atol=1e-6)
    # Without an example it takes any length, and unroll writes it out.
    rolled = decompose(model)
    longer = torch.randn(2, STEPS + 2, 3)
    torch.testing.assert_close(rolled(longer), model(longer), rtol=0, atol=1e-6)
    written = unroll(rolled, x)
    assert isinstance(written, fx.GraphModule)
    torch.testing.assert_close(written(x), model(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("steps", [STEPS - 1, STEPS + 1])
def test_another_length_is_refused(name: str, steps: int) -> None:
    flat = decompose(Loop(LOOPS[name]), torch.randn(3, STEPS, 3))
    with pytest.raises(FixedSizeError, match=r"test_by_example.py:\d+ was .* in the example inputs"):
        flat(torch.randn(3, steps, 3))


def begun(self: Loop, x: Tensor, h: Tensor | None = None, *, reverse: bool = False) -> Tensor:
    if h is None:
        h = torch.zeros(x.shape[0], 4)
    for t in reversed(range(STEPS)) if reverse else range(STEPS):
        h = self.step(x[:, t], h)
    return h


class Begun(Loop):
    def forward(self, x: Tensor, h: Tensor | None = None, reverse: bool = False) -> Any:
        return begun(self, x, h, reverse=reverse)


@pytest.mark.parametrize(
    ("args", "other", "said"),
    [
        ((), (torch.ones(3, 4),), "h was None in the example inputs"),
        ((torch.ones(3, 4),), (None,), "h was given in the example inputs"),
        ((None, True), (None, False), "was True in the example inputs"),
    ],
    ids=["absent", "given", "a flag"],
)
def test_arguments_are_as_in_the_example(args: Any, other: Any, said: str) -> None:
    model, x = Begun(begun), torch.randn(3, STEPS, 3)
    flat = decompose(model, (x, *args))
    assert isinstance(flat, fx.GraphModule)
    torch.testing.assert_close(flat(x, *args), model(x, *args), rtol=0, atol=1e-6)
    with pytest.raises(FixedSizeError, match=said):
        flat(x, *other)


def of_rows(self: Loop, x: Tensor) -> Tensor:
    return torch.stack([self.over(row.unsqueeze(1)) for row in x])


def of_values(self: Loop, x: Tensor) -> Tensor:
    return self.over(x[:, t] for t in range(int(x[0, 0, 0].abs() * 0) + 2))


def of_many_rows(self: Loop, x: Tensor) -> Tensor:
    return self.over(x.unbind(1)) if x.shape[0] > 4 else self.over(x.unbind(1)) * 2


@pytest.mark.parametrize("run", [of_rows, of_values, of_many_rows])
def test_what_hangs_on_rows_or_values_stays_code(run: Any) -> None:
    model, x = Loop(run), torch.randn(3, STEPS, 3)
    flat = decompose(model, x)
    assert list(Report.of(flat).islands) == [""]
    for rows in (1, 3, 8):
        other = torch.randn(rows, STEPS, 3)
        torch.testing.assert_close(flat(other), model(other), rtol=0, atol=1e-6)


class Counts(Loop):
    """Keeps a number in a list of its own."""

    def __init__(self) -> None:
        super().__init__(by_condition)
        self.calls = [0]

    def forward(self, x: Tensor, *rest: Any) -> Any:
        self.calls[0] += 1
        return super().forward(x) * self.calls[0]


def test_what_is_kept_in_a_list_stays_code() -> None:
    model, x = Counts(), torch.randn(3, STEPS, 3)
    flat = decompose(model, x)
    assert list(Report.of(flat).islands) == [""]
    assert model.calls == [0]
