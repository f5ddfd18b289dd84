"""Input that the original would not take raises an error that names the module and the shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from passes.errors import InputError
from rewriter import RewriteError, decompose


class Parent(nn.Module):
    """Gives the layer a qualified name."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"rnn": layer})

    def forward(self, x: Any, hx: Any = None) -> Any:
        return self.encoder["rnn"](x, hx)


def z(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


SEQUENCES = [
    (z(5, 2, 7), None, r"with 3 features last, got (5, 2, 7)"),
    (z(3), None, "got (3,)"),
    (z(1, 5, 2, 3), None, "got (1, 5, 2, 3)"),
    (z(0, 2, 3), None, "at least 1 step, got length 0"),
    ([1.0, 2.0], None, "expected a Tensor or a PackedSequence as input, got list"),
    (z(5, 2, 3), z(1, 2, 4), "expected a tuple (h, c) of Tensors as initial state, got a Tensor"),
    (z(5, 2, 3), (z(1, 2, 4),), "got a tuple of (Tensor)"),
    (z(5, 2, 3), (z(1, 2, 4), 0), "got a tuple of (Tensor, int)"),
    (z(5, 2, 3), (z(1, 2, 5), z(1, 2, 4)), "state h of shape (1, 2, 4), got (1, 2, 5)"),
    (z(5, 2, 3), (z(1, 2, 4), z(1, 3, 4)), "state c of shape (1, 2, 4), got (1, 3, 4)"),
    (z(5, 3), (z(1, 2, 4), z(1, 2, 4)), "state h of shape (1, 4), got (1, 2, 4)"),
    (z(5, 2, 3), (z(1, 2, 4, dtype=torch.float64),) * 2, "dtype torch.float32, got torch.float64"),
    (z(5, 2, 3, dtype=torch.float64), None, "expected input of dtype torch.float32, got torch.float64"),
    (z(5, 2, 3, dtype=torch.int64), None, "expected input of dtype torch.float32, got torch.int64"),
]


def assert_refused(layer: nn.Module, x: Any, hx: Any, message: str) -> None:
    model = Parent(layer)
    # Only what torch itself refuses.
    with pytest.raises((RuntimeError, ValueError, AttributeError, TypeError, IndexError)):
        model(x, hx)
    with pytest.raises(InputError) as caught:
        decompose(model)(x, hx)
    assert str(caught.value).startswith("encoder.rnn: ")
    assert message in str(caught.value)
    assert isinstance(caught.value, RewriteError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(("x", "hx", "message"), SEQUENCES, ids=[message for *_, message in SEQUENCES])
def test_lstm(x: Any, hx: Any, message: str) -> None:
    assert_refused(nn.LSTM(3, 4), x, hx, message)


CELLS = [
    (z(2, 7), None, "shape (3,) or (B, 3), got (2, 7)"),
    (z(2, 2, 3), None, "got (2, 2, 3)"),
    ("x", None, "expected a Tensor as input, got str"),
    (z(2, 3), (z(2, 4), z(2, 4)), "expected a Tensor h as initial state, got a tuple of (Tensor, Tensor)"),
    (z(2, 3), z(3, 4), "state h of shape (2, 4), got (3, 4)"),
    (z(3), z(1, 4), "state h of shape (4,), got (1, 4)"),
    (z(2, 3, dtype=torch.float64), None, "expected input of dtype torch.float32, got torch.float64"),
]


@pytest.mark.parametrize(("x", "hx", "message"), CELLS, ids=[message for *_, message in CELLS])
def test_cell(x: Any, hx: Any, message: str) -> None:
    assert_refused(nn.GRUCell(3, 4), x, hx, message)


def test_example_inputs_that_do_not_run() -> None:
    model = Parent(nn.LSTM(3, 4))
    with pytest.raises(InputError, match=r"encoder\.rnn: expected input of shape"):
        decompose(model, z(5, 2, 7))
    with pytest.raises(RewriteError, match="example_inputs do not run through the model: TypeError"):
        decompose(model, (z(5, 2, 3), None, None))


def test_the_model_itself_is_named() -> None:
    with pytest.raises(InputError, match=r"^the model itself \(LSTM\): expected input of shape"):
        decompose(nn.LSTM(3, 4))(z(5, 2, 7))


def test_packed_data_of_wrong_width() -> None:
    packed = torch.nn.utils.rnn.pack_sequence([z(3, 7), z(2, 7)])
    with pytest.raises(InputError, match=r"expected input of shape packed data .* got \(5, 7\)"):
        decompose(Parent(nn.LSTM(3, 4)))(packed)
