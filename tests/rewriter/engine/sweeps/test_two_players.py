"""Cells whose input and old state are two players, against games that are played out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from rewriter import DeepExplainer
from rewriter.engine.path.nearness import Nearer
from rewriter.engine.sweeps.cell_graph import CellGraph
from rewriter.engine.sweeps.program import READS, WRITES, ProgramSteps
from rewriter.engine.sweeps.two_players import sweep
from rewriter.engine.sweeps.two_players.program import program_of_players
from tests.rewriter.engine.test_derived_sweeps import CELLS, SIZE, UNCERTAIN, Layer, State
from tests.rewriter.engine.test_programs import Cell
from tests.support.models import gallery
from tests.support.oracles.deeplift import Array, Pair, contributions
from tests.support.oracles.shapley import shapley_of_orders
from tests.support.watching import calls_noted

# Sums of some hundred roundings of numbers of size 1.
CLOSE = {torch.float32: 1e-5, torch.float64: 1e-12}
SHAPLEY = Nearer(cells="shapley")


def switched(step: Callable[..., State], ends: list[Pair], count: int) -> list[Pair]:
    """Take one step with two players: the first of what it takes is the input, the rest is the state."""

    def at(x: Callable[[Pair], Array], s: Callable[[Pair], Array]) -> list[Array]:
        return [x(ends[0]), *(s(each) for each in ends[1:])]

    def of_sample(each: Pair) -> Array:
        return each.x

    def of_reference(each: Pair) -> Array:
        return each.x0

    corners = {
        (a, b): at(*((of_reference, of_sample)[each] for each in (a, b))) for a in (0, 1) for b in (0, 1)
    }

    def played(low: tuple[int, int], high: tuple[int, int]) -> tuple[State, list[Pair]]:
        taken = [Pair(*each) for each in zip(corners[high], corners[low], strict=True)]
        return step(*taken), taken

    switches = [
        ((0, 0), (1, 0), [0]),
        ((0, 1), (1, 1), [0]),
        ((0, 0), (0, 1), [*range(1, len(ends))]),
        ((1, 0), (1, 1), [*range(1, len(ends))]),
    ]
    new = []
    for k in range(count):
        made_of: list[tuple[Pair, Callable[[Array], Array]]] = []
        for low, high, players in switches:
            result, taken = played(low, high)
            for player in players:

                def back(
                    m: Array, result: Pair = result[k], of: Pair = taken[player], end: Pair = ends[player]
                ) -> Array:
                    shares = sum(m[j] * contributions(result, j, [of])[0] for j in range(len(m)))
                    return shares / (end.x - end.x0) / 2

                made_of.append((ends[player], back))
        end, begin = (step(*(Pair(each, each) for each in corners[c, c]))[k].x for c in (1, 0))
        new.append(Pair(end, begin, *made_of))
    return new


def restated(layer: Layer, step: Callable[..., State], x: Array, x0: Array, output: int) -> Array:
    """Explain one pair: (T, I)."""

    def weights(name: str) -> tuple[Array, Array]:
        linear = layer.get_submodule(name)
        return linear.weight.detach().numpy(), linear.bias.detach().numpy()

    rows = [Pair(a, b) for a, b in zip(x, x0, strict=True)]
    h = rows[0].through(*weights("start")).of(np.tanh)
    states = layer.recurrence.states
    state: list[Pair] = [h] * states
    for row in rows:
        hidden = state[0].through(*weights("recurrence.hidden"))
        # A state may be the same thing twice: each is switched by itself.
        own = [Pair(each.x, each.x0, (each, lambda m: m)) for each in state]
        state = switched(step, [row.through(*weights("input")), hidden, *own], states)
    return np.stack(contributions(state[0], output, rows))


@pytest.mark.parametrize("name", sorted(CELLS.keys() - UNCERTAIN.keys() - {"linear"}))
@pytest.mark.parametrize("compiled", [False, True])
def test_every_pair_of_every_cell(name: str, compiled: bool) -> None:
    make, step = CELLS[name]
    layer = Layer(make(), reverse=False).double()
    x, background = (torch.randn(n, 3, 3, dtype=torch.float64) for n in (2, 3))
    values = DeepExplainer(layer, background, compiled=compiled).shap_values(x, **SHAPLEY)
    for sample, output in ((0, 0), (1, SIZE - 1)):
        expected = np.mean(
            [restated(layer, step, x[sample].numpy(), each.numpy(), output) for each in background], 0
        )
        # Quotients of differences of numbers of size 1.
        np.testing.assert_allclose(values[sample, ..., output], expected, rtol=0, atol=1e-11)


LAYERS: dict[str, Callable[[], nn.RNNBase]] = {
    "LSTM": lambda: nn.LSTM(3, 5, batch_first=True),
    "LSTM, projected": lambda: nn.LSTM(3, 5, proj_size=2, batch_first=True),
    "GRU": lambda: nn.GRU(3, 5, batch_first=True),
    "GRU without biases": lambda: nn.GRU(3, 5, bias=False, batch_first=True),
    "RNN": lambda: nn.RNN(3, 5, batch_first=True),
    "RNN of relu": lambda: nn.RNN(3, 5, nonlinearity="relu", batch_first=True),
}


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
# Rows of the library's parts, and some more.
@pytest.mark.parametrize("size", [1, 64, 133])
@pytest.mark.parametrize(
    ("kind", "as_program"),
    [("LSTM", False), ("LSTM", True), ("GRU", False), ("GRU", True), ("RNN", True), ("peepholes", True)],
)
def test_the_library_computes_the_same(
    kind: str, as_program: bool, size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if as_program:
        monkeypatch.setattr(sweep, "cell_of_the_library", lambda step: None)
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    torch.manual_seed(size)
    layer = None if kind == "peepholes" else getattr(nn, kind)(3, size, batch_first=True)
    model = (Last(layer) if layer else Cell(size)).to(dtype).eval()
    x, references = (torch.randn(n, 5, 3, dtype=dtype) for n in (2, 3))
    calls = calls_noted(monkeypatch, ProgramSteps)
    fast = DeepExplainer(model, references).shap_values(x, **SHAPLEY)
    assert set(calls) == set(range(5))
    calls.clear()
    plain = DeepExplainer(model, references, compiled=False).shap_values(x, **SHAPLEY)
    assert not calls
    close = {torch.float32: 5e-6, torch.float64: 1e-13}[dtype]
    np.testing.assert_allclose(fast, plain, rtol=0, atol=close * np.abs(plain).max())


@pytest.mark.parametrize("name", ["coupled", "fading"])
def test_registers_are_written_before_they_are_read(name: str) -> None:
    program = program_of_players(CellGraph(CELLS[name][0]()))
    assert program is not None
    written: set[int] = set()
    for place, (what, to, *operands, _) in enumerate(program.operations):
        if place == program.once:
            # What is written for one output is not what the next one reads.
            written -= {each[1] for each in program.operations[place:] if each[0] in WRITES}
        named = dict(zip("abct", (*operands, to), strict=True))
        assert {named[each] for each in READS[what]} - {-1} <= written
        if what in WRITES:
            written.add(to)
    assert max(written) < program.registers


class Last(nn.Module):
    """What a layer gives last is taken times numbers."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)[0][:, -1]
        return (y * torch.arange(1, y.shape[-1] + 1)).sum(-1, keepdim=True)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_the_last_step_and_all_before_are_two_players(name: str, compiled: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().to(dtype)
    for weight in layer.parameters():
        weight.data *= 3
    model, steps = Last(layer).eval(), 4
    x, references = (torch.randn(n, steps, 3, dtype=dtype) for n in (2, 3))
    explainer = DeepExplainer(model, references, compiled=compiled)
    found, plain = (explainer.shap_values(x, **asked)[..., 0].sum(2) for asked in (SHAPLEY, Nearer()))
    model = model.double()

    def game(sample: Tensor, reference: Tensor) -> list[float]:
        def value(players: list[float]) -> float:
            before, last = (torch.tensor(bool(each)) for each in players)
            rows = [torch.where(before, sample, reference)[:-1], torch.where(last, sample, reference)[-1:]]
            with torch.no_grad():
                return float(model(torch.cat(rows).unsqueeze(0).double()))

        return shapley_of_orders(value, [1.0, 1.0], [0.0, 0.0])

    for sample, shares in zip(x, found, strict=True):
        expected = np.mean([game(sample, each) for each in references], 0)
        close = CLOSE[dtype] * max(1, np.abs(expected).max())
        np.testing.assert_allclose([shares[:-1].sum(), shares[-1]], expected, rtol=0, atol=close)
    # It is a game of its own: by the rules of atoms alone steps get something else.
    assert np.abs(plain - found).max() > 1e-3


MODELS: dict[str, Callable[[], nn.Module]] = {
    "two layers, both directions": lambda: gallery.Classifier("LSTM", num_layers=2, bidirectional=True),
    "two layers of GRU": lambda: gallery.Classifier("GRU", num_layers=2),
    "user's loop": lambda: UsersLoop(),
    "code": lambda: gallery.ValueControlFlow(),
}


class UsersLoop(nn.Module):
    """A loop over a cell of torch's."""

    def __init__(self, *, adds: bool = False) -> None:
        super().__init__()
        self.cell, self.head, self.adds = nn.LSTMCell(3, 4), nn.Linear(4, 2), adds

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], 4)
        total = 0
        for t in range(5):
            h, c = self.cell(x[:, t], (h, c))
            total = total + c
        return self.head(h + total if self.adds else h)


@pytest.mark.parametrize(
    "asked", [Nearer(), Nearer(segments=3), Nearer(blocks=2, draws=2, segments=2)], ids=str
)
@pytest.mark.parametrize("name", MODELS)
def test_they_add_up(name: str, asked: Nearer) -> None:
    torch.manual_seed(1)
    model = MODELS[name]().double().eval()
    for weight in model.parameters():
        weight.data *= 2
    x, references = (torch.randn(n, 5, 3, dtype=torch.float64) for n in (3, 4))
    explainer = DeepExplainer(model, references)
    before = explainer.shap_values(x, **asked)
    by_players = Nearer(**{**asked, **SHAPLEY})
    values = explainer.shap_values(x, **by_players)
    with torch.no_grad():
        change = (model(x) - model(references).mean(0)).numpy()
    np.testing.assert_allclose(values.sum((1, 2)), change, rtol=0, atol=1e-12)
    # What is remembered belongs to the rule that it was made by.
    np.testing.assert_array_equal(explainer.shap_values(x, **by_players), values)
    np.testing.assert_array_equal(explainer.shap_values(x, **asked), before)
    assert np.abs(values - before).max() > 1e-4


@pytest.mark.parametrize("compiled", [False, True])
def test_tiles_and_references_of_their_own_change_nothing(compiled: bool) -> None:
    model = gallery.Classifier("LSTM", num_layers=2).double().eval()
    x, references = (torch.randn(n, 5, 3, dtype=torch.float64) for n in (3, 4))
    explainer = DeepExplainer(model, references, compiled=compiled)
    values = explainer.shap_values(x, **SHAPLEY)
    own = explainer.shap_values(x, references=references.expand(3, 4, 5, 3), **SHAPLEY)
    little = DeepExplainer(model, references, compiled=compiled, max_memory=1).shap_values(x, **SHAPLEY)
    single = [explainer.shap_values(x, references=each.expand(3, 1, 5, 3), **SHAPLEY) for each in references]
    for each in (own, little, np.mean(single, 0)):
        np.testing.assert_allclose(each, values, rtol=0, atol=1e-13)


def test_packed_sequences_add_up() -> None:
    model = gallery.Packing("GRU").double().eval()
    x, references = (torch.randn(n, 6, 3, dtype=torch.float64) for n in (3, 4))
    x[0, 4:] = x[1, 2:] = 0
    explainer = DeepExplainer(model, references, output=lambda y: y[1][0])
    values = explainer.shap_values(x, **SHAPLEY)
    with torch.no_grad():
        change = (model(x)[1][0] - model(references)[1][0].mean(0)).numpy()
    np.testing.assert_allclose(values.sum((1, 2)), change, rtol=0, atol=1e-12)


def test_an_equal_input_gets_nothing_and_an_equal_sample_too() -> None:
    model = gallery.Classifier("LSTM").double().eval()
    references = torch.randn(2, 5, 3, dtype=torch.float64)
    x = references[:1].clone()
    x[:, 2, 1] += 1
    explainer = DeepExplainer(model, references)
    values = explainer.shap_values(x, references=references[None, :1], **SHAPLEY)
    assert (values[0] != 0).any(-1).nonzero() == ([2], [1])
    assert not explainer.shap_values(references[:1], references=references[None, :1], **SHAPLEY).any()


class Normed(UsersLoop):
    """A cell with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.norm = nn.Linear(3, 4), nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 4)
        for t in range(5):
            h = torch.tanh(self.norm(self.x(x[:, t]) + self.h(h)))
        return self.head(h)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no recurrence": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(15, 2), nn.Tanh()),
        "the model has no recurrence",
    ),
    "a cell that goes step by step": (lambda: UsersLoop(adds=True), "^cell: cells='shapley'"),
    "a norm": (Normed, "cell has a norm"),
    "mixed elements": (lambda: Layer(UNCERTAIN["mixing"](), reverse=False), "^layer: cells='shapley'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    explainer = DeepExplainer(make().double().eval(), torch.randn(4, 5, 3).double())
    x = torch.randn(2, 5, 3).double()
    before = explainer.shap_values(x)
    with pytest.raises(RewriteError, match=message):
        explainer.shap_values(x, **SHAPLEY)
    np.testing.assert_array_equal(explainer.shap_values(x), before)


def test_another_name_is_refused() -> None:
    explainer = DeepExplainer(gallery.Classifier().eval(), torch.randn(4, 5, 3))
    wrong: Any = {"cells": "exact"}
    with pytest.raises(RewriteError, match="cells: expected one of deeplift, shapley, got 'exact'"):
        explainer.shap_values(torch.randn(2, 5, 3), **wrong)
