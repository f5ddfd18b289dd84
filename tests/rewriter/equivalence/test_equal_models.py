"""What is equal passes, and every parameter is compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from rewriter import assert_equivalent, check_equivalence, decompose

# Made in the test, behind the seed.
SEQUENCES: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "lstm": lambda: (nn.LSTM(3, 4, 2), torch.randn(5, 2, 3)),
    "lstm, bidirectional, batch first": lambda: (
        nn.LSTM(3, 4, bidirectional=True, batch_first=True),
        torch.randn(2, 5, 3),
    ),
    "lstm, projected, two directions": lambda: (
        nn.LSTM(3, 4, proj_size=2, bidirectional=True),
        torch.randn(5, 2, 3),
    ),
    "lstm, dropout in training": lambda: (nn.LSTM(3, 4, 2, dropout=0.5), torch.randn(5, 2, 3)),
    "lstm, packed": lambda: (
        nn.LSTM(3, 4, bidirectional=True),
        pack_sequence([torch.randn(n, 3) for n in (5, 3)]),
    ),
    "lstm, packed unsorted": lambda: (
        nn.LSTM(3, 4),
        pack_sequence([torch.randn(n, 3) for n in (2, 4, 3)], enforce_sorted=False),
    ),
    "lstm, state": lambda: (
        nn.LSTM(3, 4),
        {"input": torch.randn(5, 2, 3), "hx": (torch.zeros(1, 2, 4), torch.ones(1, 2, 4))},
    ),
    "gru, unbatched": lambda: (nn.GRU(3, 4, 2), torch.randn(5, 3)),
    "gru, no bias": lambda: (nn.GRU(3, 4, bias=False, bidirectional=True), torch.randn(5, 2, 3)),
    "rnn tanh": lambda: (nn.RNN(3, 4), (torch.randn(5, 2, 3), None)),
    "rnn relu": lambda: (nn.RNN(3, 4, nonlinearity="relu"), torch.randn(5, 2, 3)),
    "lstm cell": lambda: (nn.LSTMCell(3, 4), (torch.randn(2, 3), (torch.randn(2, 4), torch.randn(2, 4)))),
    "gru cell": lambda: (nn.GRUCell(3, 4), torch.randn(2, 3)),
    "rnn cell": lambda: (nn.RNNCell(3, 4), torch.randn(2, 3)),
}


@pytest.mark.parametrize("gates", ["fused", "split"])
@pytest.mark.parametrize("flat", [False, True], ids=["rolled", "flat"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_decomposed_layers_are_equal(name: str, flat: bool, gates: Literal["fused", "split"]) -> None:
    model, inputs = SEQUENCES[name]()
    rewritten = decompose(model, inputs if flat else None, gates=gates)
    report = check_equivalence(model, rewritten, inputs, seeds=1 if flat else 2)
    assert report.equal, str(report)
    compared = {each.place for each in report.comparisons if each.kind == "parameter gradient"}
    assert compared == {parameter for parameter, _ in model.named_parameters()}


class Classifier(nn.Module):
    """Cannot be traced: it branches on lengths, and packs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3, padding_idx=0)
        self.lstm = nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(8, 2)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> dict[str, Any]:
        x: Any = self.embedding(tokens)
        if lengths is not None and int(lengths.min()) < tokens.shape[1]:
            x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        _, (h, _) = self.lstm(x)
        logits = self.head(torch.cat((h[-2], h[-1]), -1))
        return {"logits": logits, "label": logits.argmax(-1), "lengths": lengths}


@pytest.mark.parametrize("gates", ["fused", "split"])
def test_an_untraceable_parent_with_integer_inputs_is_equal(gates: Literal["fused", "split"]) -> None:
    model = Classifier()
    tokens = torch.tensor([[1, 2, 0, 0], [3, 4, 5, 6], [1, 1, 1, 0]])
    inputs = {"tokens": tokens, "lengths": torch.tensor([2, 4, 3])}
    report = check_equivalence(model, decompose(model, gates=gates), inputs)
    assert report.equal, str(report)
    outputs = {each.place for each in report.comparisons if each.kind == "output"}
    assert outputs == {"output['logits']", "output['label']", "output['lengths']"}


def test_dropout_around_and_inside_a_layer_is_compared_in_training_mode() -> None:
    class Regular(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Dropout(0.3), nn.Dropout(0.3)
            self.lstm = nn.LSTM(3, 4, 3, dropout=0.4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.after(self.lstm(self.before(x))[0])

    model = Regular()
    assert_equivalent(model, decompose(model), torch.randn(2, 5, 3))


def test_a_shared_split_parameter_gets_the_sum_of_its_gradients() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.GRU(4, 4), nn.GRU(4, 4)
            self.second.weight_hh_l0 = self.first.weight_hh_l0

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)[0])[0]

    model = Tied()
    assert_equivalent(model, decompose(model, gates="split"), torch.randn(3, 2, 4))
