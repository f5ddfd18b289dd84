"""What a model takes and gives may be any container; outputs are called as its keys are."""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from rewriter import export_onnx
from rewriter.onnx.containers import leaves_of, tensors_of, with_leaves
from tests.support.exports import check_against_torch


@dataclass(frozen=True)
class Batch:
    x: Tensor
    options: dict[str, Any]
    scale: float = 2.0


class Scores(NamedTuple):
    scores: Tensor
    ranks: Tensor


@dataclass
class Answer:
    logits: Tensor
    states: tuple[Tensor, ...]
    best: Scores
    loss: Tensor | None = None


class Keyed(OrderedDict[str, Any]):
    """A mapping of a class of its own."""


class Contained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, batch: Batch, *, extra: Any) -> Answer:
        x = batch.x * batch.options["weight"][:, None, None] * batch.scale
        out, states = self.lstm(x + extra["shift"][0])
        return Answer(out, states, Scores(out[:, -1], out.argmax(-1)))


class Flat(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, weight: Tensor, shift: Tensor) -> list[Tensor]:
        return tensors_of(self.model(Batch(x, {"weight": weight}), extra=Keyed(shift=[shift])))


def test_any_container_goes_in_and_out(tmp_path: Path) -> None:
    model = Contained()
    given = {
        "batch": Batch(torch.randn(2, 4, 3), {"weight": torch.rand(2)}),
        "extra": Keyed(shift=[torch.randn(3)]),
    }
    report = export_onnx(model, given, tmp_path / "m.onnx")
    assert list(report.inputs) == ["batch_x", "batch_options_weight", "extra_shift_0"]
    assert list(report.outputs) == ["logits", "states_0", "states_1", "best_scores", "best_ranks"]
    check_against_torch(tmp_path / "m.onnx", Flat(model), torch.randn(5, 4, 3), torch.rand(5), torch.randn(3))


def test_an_output_named_as_an_input(tmp_path: Path) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return Keyed(x=2 * super().forward(x), y=x)

    report = export_onnx(Doubled(3, 3), torch.randn(2, 3), tmp_path / "m.onnx")
    assert list(report.outputs) == ["x_output", "y"]
    with pytest.raises(RewriteError, match="expected names that no input has, got x"):
        export_onnx(Doubled(3, 3), torch.randn(2, 3), tmp_path / "n.onnx", output_names=["x", "y"])


def test_containers_are_copied_and_what_is_none_is_a_leaf() -> None:
    batch = Batch(torch.ones(2), {"weight": torch.zeros(1), "name": "a"})
    value = Keyed(batch=batch, pair=Scores(torch.ones(1), torch.ones(2)), rest=[3, None])
    new = with_leaves(value, lambda leaf: leaf + 1 if isinstance(leaf, Tensor) else leaf)
    assert [type(each) for each in (new, new["batch"], new["pair"])] == [Keyed, Batch, Scores]
    assert new["batch"].options["weight"].item() == 1
    assert batch.options["weight"].item() == 0
    assert new["rest"] == [3, None]
    assert [".".join(place) for place, leaf in leaves_of(value) if isinstance(leaf, Tensor)] == [
        "batch.x", "batch.options.weight", "pair.scores", "pair.ranks",
    ]  # fmt: skip


def test_names_that_would_be_there_twice(tmp_path: Path) -> None:
    class Answers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> dict[str, Any]:
            y = self.linear(x)
            return {"x": x, "x_output": y, "": 2 * y, "a_0": 3 * y, "a": (4 * y,)}

    names = ["x_output_1", "x_output", "output", "a_0", "a_0_output"]
    report = export_onnx(Answers(), torch.randn(2, 3), tmp_path / "m.onnx")
    assert list(report.outputs) == names
    model = Answers()
    export_onnx(model, torch.randn(2, 3), tmp_path / "m.onnx")
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(4, 3))


@pytest.mark.parametrize("loops", [True, False])
def test_a_weight_may_be_an_output(tmp_path: Path, loops: bool) -> None:
    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(3, 4, batch_first=True)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return self.rnn.weight_ih_l0.detach(), self.rnn(x)[0], self.rnn.weight_hh_l0.detach()

    model = Weights()
    export_onnx(model, torch.randn(2, 2, 3), tmp_path / "m.onnx", loops=loops)
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(3, 2, 3))
