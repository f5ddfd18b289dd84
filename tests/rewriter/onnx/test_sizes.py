"""A file is right for every size that its axes claim, or is refused with the line of the branch."""

import gc
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from passes.errors import RewriteError
from rewriter import export_onnx
from rewriter.onnx.check import run_torch
from rewriter.onnx.example import read_example
from rewriter.onnx.sizes import parting
from rewriter.onnx.sizes.assumptions import Assumptions, Condition
from rewriter.onnx.sizes.axes import free_axes, settled, sizes_of
from rewriter.onnx.sizes.parting import parting_line
from rewriter.onnx.sizes.tried import resized
from tests.support.exports import check_against_torch

X = torch.randn(2, 6, 3)


class Before(nn.Module):
    """A GRU behind a function of the input."""

    def __init__(self, begin: Callable[[Tensor], Tensor], features: int = 3) -> None:
        super().__init__()
        self.gru = nn.GRU(features, 4, batch_first=True)
        self.begin = begin

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(self.begin(x))[0]


def last_forty(x: Tensor) -> Tensor:
    if x.shape[1] > 40:
        return x[:, -40:]
    return x


def one_step(x: Tensor) -> Tensor:
    return 2 * x if x.shape[1] == 1 else x


def pairs(x: Tensor) -> Tensor:
    if x.shape[1] % 2:
        x = x[:, :-1]
    return x.reshape(x.shape[0], x.shape[1] // 2, 6)


def large_batch(x: Tensor) -> Tensor:
    if len(x) > 30:
        x = x - x.mean(0)
    return x


def line(function: Callable[..., Any], below: int) -> str:
    return f"{Path(__file__).name}:{function.__code__.co_firstlineno + below}"


@pytest.mark.parametrize(
    ("model", "options", "place", "trial"),
    [
        (Before(last_forty), {"loops": True}, line(last_forty, 1), "time of "),
        (Before(one_step), {"loops": True}, line(one_step, 1), "batch of 1, time of 1"),
        (Before(pairs, 6), {"loops": True}, line(pairs, 1), "time of "),
        (Before(large_batch), {}, line(large_batch, 1), "batch of 31"),
    ],
)
def test_a_branch_on_a_size_is_refused_with_its_line(
    tmp_path: Path, model: nn.Module, options: dict[str, Any], place: str, trial: str
) -> None:
    with pytest.raises(RewriteError, match=re.escape(f"at {place} the model's code goes another")) as caught:
        export_onnx(model, X, tmp_path / "m.onnx", **options)
    assert trial in str(caught.value)
    assert "torch.export.Dim" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def twice_if_many(x: Tensor) -> Tensor:
    if len(x) > 3:
        x = 2 * x
    return x


def twice_if_many_rows(x: Tensor) -> Tensor:
    if x.shape[0] > 3:
        x = 2 * x
    return x


def three_rows(x: Tensor) -> Tensor:
    return x[-3:] if len(x) > 3 else x


def few(x: Tensor) -> Tensor:
    if len(x) > 3:
        raise ValueError("too many rows")
    return x


@pytest.mark.parametrize(
    ("begin", "rows", "below", "said"),
    [
        # Where twice the rows go the other way, and where they do not.
        (twice_if_many, 2, 1, "other numbers of rows"),
        (twice_if_many_rows, 2, 1, "other numbers of rows"),
        (twice_if_many, 4, 1, "than for batch 4"),
        (three_rows, 2, 1, "other numbers of rows"),
        (three_rows, 5, 1, "other numbers of rows"),
        (few, 2, 2, "ValueError: too many rows"),
    ],
)
def test_a_branch_on_the_rows_is_named(
    tmp_path: Path, begin: Callable[[Tensor], Tensor], rows: int, below: int, said: str
) -> None:
    with pytest.raises(RewriteError, match=re.escape(line(begin, below))) as caught:
        export_onnx(Before(begin).eval(), torch.randn(rows, 6, 3), tmp_path / "m.onnx", loops=True)
    assert said in str(caught.value)


@pytest.mark.parametrize("begin", [lambda x: x[:2], lambda x: x * len(x)])
def test_no_branch_is_named_where_there_is_none(tmp_path: Path, begin: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(RewriteError, match="is a batch") as caught:
        export_onnx(Before(begin), torch.randn(4, 6, 3), tmp_path / "m.onnx")
    assert "goes another way" not in str(caught.value)


def test_a_branch_elsewhere_is_not_named_for_a_model_without_rows(tmp_path: Path) -> None:
    """One sequence: the branch is on its steps, and none of its axes is a batch."""
    with pytest.raises(RewriteError, match="is a batch") as caught:
        export_onnx(Before(twice_if_many), X[0], tmp_path / "m.onnx")
    assert "goes another way" not in str(caught.value)


class StepsFirst(Before):
    def __init__(self, begin: Callable[[Tensor], Tensor]) -> None:
        super().__init__(begin)
        self.gru.batch_first = False


@pytest.mark.parametrize("model", [StepsFirst(three_rows), Before(last_forty)])
def test_a_branch_that_fixes_the_steps_is_named(tmp_path: Path, model: Before) -> None:
    axis, shape = (0, (6, 2, 3)) if isinstance(model, StepsFirst) else (1, (2, 50, 3))
    place = re.escape(line(model.begin, 1))
    with pytest.raises(RewriteError, match=f"is frozen: at {place} .* for axis {axis} of x of size 1 than"):
        export_onnx(model, torch.randn(shape), tmp_path / "m.onnx", loops=True)


def test_bounds_make_a_branch_no_branch(tmp_path: Path) -> None:
    model = Before(last_forty)
    axes = {"x": {0: "rows", 1: Dim("steps", max=40)}}
    report = export_onnx(model, X[:, :1], tmp_path / "m.onnx", loops=True, dynamic_axes=axes)
    assert report.inputs == {"x": ("rows", "steps", 3)}
    assert report.bounds == {"rows": (1, None), "steps": (1, 40)}
    assert "rows of 5, steps of 40" in report.errors
    assert "1 to 40" in str(report)
    noted = {each.key: each.value for each in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(noted["rewriter.bounds"]) == {"steps": [1, 40]}
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(3, 40, 3))


class Translator(nn.Module):
    """An encoder behind a strided convolution, a decoder with a start token and positions, a memory."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, stride=2)
        self.encoder = nn.GRU(4, 4, batch_first=True, bidirectional=True)
        self.start = nn.Parameter(torch.randn(1, 1, 5))
        self.decoder = nn.LSTM(5, 8, batch_first=True)
        self.register_buffer("table", torch.randn(90, 5))

    def forward(self, source: Tensor, target: Tensor, memory: Tensor) -> Tensor:
        encoded = self.encoder(self.conv(source.transpose(1, 2)).transpose(1, 2))[0]
        target = target + self.table[: target.shape[1]]
        target = torch.cat((self.start.expand(len(target), -1, -1), target), 1)
        decoded = self.decoder(target)[0]
        keys = torch.cat((encoded, memory), 1)
        return (decoded @ keys.transpose(1, 2)).softmax(-1) @ keys


def test_several_lengths_are_free_beside_each_other(tmp_path: Path) -> None:
    model = Translator()
    inputs = torch.randn(2, 9, 3), torch.randn(2, 1, 5), torch.randn(2, 3, 8)
    report = export_onnx(
        model, inputs, tmp_path / "m.onnx", loops=True, dynamic_axes={"memory": {1: "slots"}}
    )
    assert report.inputs == {
        "source": ("batch", "time", 3),
        "target": ("batch", "time_1", 5),
        "memory": ("batch", "slots", 8),
    }
    assert report.outputs == {"output": ("batch", "time_1 + 1", 8)}
    # A window of three steps; a table of 90 positions.
    assert report.bounds["time"] == (3, None)
    assert report.bounds["time_1"] == (1, 90)
    assert report.bounds["slots"] == (1, None)
    for source, target, slots in ((3, 1, 1), (10, 90, 4), (50, 2, 30)):
        given = torch.randn(3, source, 3), torch.randn(3, target, 5), torch.randn(3, slots, 8)
        check_against_torch(tmp_path / "m.onnx", model, *given)


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x, torch.ones(1, 2, 4))[0]


@pytest.mark.parametrize(
    ("model", "inputs", "loops", "shape", "others"),
    [
        (FixedBatch(), X, False, (2, 6, 3), torch.randn(2, 6, 3)),
        (nn.LSTM(3, 4, bidirectional=True), X[0], True, ("time", 3), torch.randn(11, 3)),
    ],
)
def test_a_model_without_a_free_batch(
    tmp_path: Path, model: nn.Module, inputs: Tensor, loops: bool, shape: tuple[Any, ...], others: Tensor
) -> None:
    report = export_onnx(model, inputs, tmp_path / "m.onnx", batch_axes={}, loops=loops)
    assert next(iter(report.inputs.values())) == shape
    check_against_torch(tmp_path / "m.onnx", model, others)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, r"expected, for some of x, the names of its axes, as in \{'x'"),
        ({"y": {1: "time"}}, r"expected, for some of x"),
        ({"x": [1]}, "expected a name for each axis of x"),
        ({"x": {3: "time"}}, r"x has shape \(2, 6, 3\), and no axis 3"),
        ({"x": {True: "time"}}, "no axis True"),
        ({"x": {1: ""}}, "expected a name"),
        ({"x": {1: Dim.AUTO}}, "expected a name"),
        ({"x": {1: 2 * Dim("half")}}, "expected a name"),
        ({"x": {1: Dim("time", max=4)}}, "time goes from 1 to 4, example_inputs have 6 in x"),
        ({"x": {1: "same", 2: "same"}}, "expected one size for same"),
        ({"x": {1: Dim("time", max=1)}}, "time has one size only; leave it out"),
        ({"x": {1: Dim("same", max=9), 2: "same"}}, "same has different bounds"),
    ],
)
def test_axes_that_are_none(tmp_path: Path, given: Any, message: str) -> None:
    with pytest.raises(RewriteError, match=message):
        export_onnx(Before(one_step), X, tmp_path / "m.onnx", dynamic_axes=given)


def test_names_follow_what_torch_found() -> None:
    import sympy

    class Two(nn.Module):
        def forward(self, x: Tensor, m: Tensor) -> Tensor:
            return x * m

    s, t, u = sympy.symbols("s t u", integer=True, positive=True)
    example = read_example(Two(), (torch.ones(2, 6), torch.ones(2, 6)))
    free = free_axes(example, (0, 0), {"x": {1: "S"}, "m": {1: "T"}})
    assert settled(free, example, Assumptions(((s, t), (s, u)), ())) == free
    with pytest.raises(RewriteError, match="takes S and T only of one size; give them one name"):
        settled(free, example, Assumptions(((s, t), (s, t)), ()))
    with pytest.raises(RewriteError, match=r"axis 1 \(T\) of m is frozen: the model's code fixes it at 6"):
        settled(free, example, Assumptions(((s, t), (s, 6)), ()))
    with pytest.raises(RewriteError, match=r"takes axis 1 \(T\) of m only of size 2\*t"):
        settled(free, example, Assumptions(((s, t), (s, 2 * t)), ()))


def test_the_sizes_that_break_a_condition_are_found() -> None:
    import sympy

    s, t = sympy.symbols("s t", integer=True, positive=True)
    sizes = {s: 6, t: 4}
    found = {
        each: list(Condition(each, "").first_broken(s, sizes))
        for each in (
            s <= 500,
            sympy.Ne(s, 1),
            sympy.Eq(sympy.Mod(s, 2), 0),
            s >= t,
            3 * s < 10_000_000,
            s > 0,
        )
    }
    assert list(found.values()) == [[501], [1], [1, 7], [1], [3_333_334], []]


def test_lengths_follow_the_axis_that_they_count() -> None:
    class Three(nn.Module):
        def forward(self, x: Tensor, lengths: Tensor, classes: Tensor) -> None: ...

    example = read_example(Three(), (X, torch.tensor([6, 3]), torch.tensor([0, 5])))
    free = free_axes(example, (0, 0, 0), {"x": {1: "time"}})
    own = sizes_of(example, free)
    for size, shorter, lengths in ((1, 0, [1, 1]), (12, 0, [12, 6]), (12, 1, [11, 5]), (6, 1, [6, 3])):
        new = resized(example, free, own, {**own, "time": size}, shorter=shorter).tensors
        assert new[0].shape == (2, size, 3)
        assert new[1].tolist() == lengths
        assert new[2].tolist() == [0, 5]


def test_the_line_at_which_two_runs_part() -> None:
    model = Before(pairs, 6).eval()
    even, odd, longer = (read_example(model, torch.randn(2, steps, 3)) for steps in (6, 7, 8))
    assert parting_line(model, even, odd) == line(pairs, 1)
    assert parting_line(model, even, longer) == ""


def test_what_the_collector_of_garbage_runs_is_not_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ring:
        """Garbage that only a collection finds, and that then runs code of this file."""

        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            self.gone = True

    def crowded(*args: Any) -> Any:
        # So many new objects that garbage would be collected, in the first run alone.
        made = [[each] for each in range(2000)]
        return made and run_torch(*args)

    monkeypatch.setattr(parting, "run_torch", crowded)
    model = Before(pairs, 6).eval()
    even, odd = (read_example(model, torch.randn(2, steps, 3)) for steps in (6, 7))
    Ring()
    assert parting.parting_line(model, even, odd) == line(pairs, 1)
    assert gc.isenabled()


class Squeezed(nn.Module):
    """Takes an axis away where it is one step long."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.rnn(x)[0]
        return torch.squeeze(y, 1)


def test_what_is_squeezed_at_one_step_is_refused_there_and_right_beyond(tmp_path: Path) -> None:
    model, path = Squeezed(), tmp_path / "m.onnx"
    line = Squeezed.forward.__code__.co_firstlineno + 2
    with pytest.raises(RewriteError, match=rf"differ by inf .*time of 1,.* at test_sizes\.py:{line} "):
        export_onnx(model, X, path, loops=True)
    assert not path.exists()
    report = export_onnx(model, X, path, loops=True, dynamic_axes={"x": {1: Dim("time", min=2)}})
    assert report.bounds["time"] == (2, None)
    for steps in (2, 9):
        check_against_torch(path, model, torch.randn(1, steps, 3))


def test_nothing_finite_at_one_step_is_nothing_finite_in_the_file(tmp_path: Path) -> None:
    model = Before(lambda x: (x - x.mean(1, keepdim=True)) / x.var(1, keepdim=True))
    report = export_onnx(model, X, tmp_path / "m.onnx", loops=True)
    assert report.errors["batch of 1, time of 1"] == 0
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(3, 8, 3))


def test_the_line_that_fixes_a_length_is_named(tmp_path: Path) -> None:
    def by_logarithm(x: Tensor) -> Tensor:
        return x * math.log(x.shape[1] + 1)

    line = by_logarithm.__code__.co_firstlineno + 1
    with pytest.raises(RewriteError, match=rf"frozen: the model's code fixes it at test_sizes\.py:{line}, "):
        export_onnx(Before(by_logarithm), X, tmp_path / "m.onnx", loops=True)
