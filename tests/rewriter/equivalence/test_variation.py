"""Lengths, batch sizes and integers vary between seeds, as far as the models take it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from rewriter import EquivalenceReport, check_equivalence, decompose
from rewriter.equivalence.variation import Plan, plan, redraw
from tests.support.comparisons import Function, failing


def tried(report: EquivalenceReport) -> list[str]:
    return list(report.inputs)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gru = nn.Embedding(9, 4), nn.GRU(4, 5, batch_first=True)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(tokens), lengths.cpu(), batch_first=True)
        return pad_packed_sequence(self.gru(packed)[0], batch_first=True)[0].sum(1)


def test_tokens_and_sorted_lengths_vary_together() -> None:
    model = Tokens()
    example = (torch.randint(0, 9, (4, 6)), torch.tensor([6, 5, 3, 2]))
    report = check_equivalence(model, decompose(model), example)
    assert report.equal, str(report)
    assert report.seeds == 3
    assert "integers" in report.notes[0]
    assert tried(report)[2] == ("input[0]: Tensor int64 (6, 8) on cpu; input[1]: Tensor int64 (6,) on cpu")


def test_lengths_stay_sorted_and_as_long_as_they_were() -> None:
    for seed in range(1, 20):
        drawn = redraw(torch.tensor([6, 5, 3, 2]), seed, Plan(integers=True))
        assert bool((drawn.diff() <= 0).all())
        assert drawn[0] == 6
        assert drawn.min() >= 2


def test_a_wrong_last_step_that_equal_lengths_hide_is_found() -> None:
    gru = nn.GRU(3, 4, batch_first=True)

    def right(x: Tensor, lengths: Tensor) -> Tensor:
        return gru(x)[0][torch.arange(len(x)), lengths - 1]

    def wrong(x: Tensor, lengths: Tensor) -> Tensor:
        # As in the example, in which the second sequence is one shorter.
        return gru(x)[0][torch.arange(len(x)), torch.tensor([4, 3] + [4] * (len(x) - 2))]

    report = check_equivalence(
        Function(right), Function(wrong), (torch.randn(2, 5, 3), torch.tensor([5, 4])), seeds=4
    )
    assert failing(report)
    assert {each.seed for each in report.failures} <= {1, 2, 3}


def test_a_frozen_batch_is_a_difference_that_names_the_way_out() -> None:
    frozen = Function(lambda x: x + torch.zeros(4, 1).to(x))
    report = check_equivalence(Function(lambda x: x + 0), frozen, torch.randn(4, 3))
    assert failing(report) == {("run", "rewritten")}
    assert "seeds=1 compares on the example alone" in str(report)
    assert check_equivalence(Function(lambda x: x + 0), frozen, torch.randn(4, 3), seeds=1)


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_what_is_written_out_for_one_length_keeps_it_and_varies_the_batch(layer: type[nn.Module]) -> None:
    model, x = layer(3, 2, batch_first=True), torch.randn(4, 5, 3)
    report = check_equivalence(model, decompose(model, x), x)
    assert report.equal, str(report)
    assert [each.split(" on ")[0] for each in tried(report)] == [
        "input: Tensor float32 (4, 5, 3)",
        "input: Tensor float32 (5, 5, 3)",
        "input: Tensor float32 (6, 5, 3)",
    ]
    assert any(
        note.startswith("size 5 of input dimension 1 stays as in the example: InputError")
        for note in report.notes
    )


def test_states_grow_with_the_batch() -> None:
    model = nn.LSTM(3, 2)
    states = (torch.zeros(1, 4, 2), torch.zeros(1, 4, 2))
    report = check_equivalence(model, decompose(model), (torch.randn(5, 4, 3), states))
    assert report.equal, str(report)
    assert tried(report)[1].startswith(
        "input[0]: Tensor float32 (6, 5, 3) on cpu; input[1][0]: Tensor float32 (1, 5, 2)"
    )


@pytest.mark.parametrize("in_order", [True, False])
def test_packed_sequences_get_other_lengths(in_order: bool) -> None:
    lengths = torch.tensor([5, 4, 4, 2] if in_order else [2, 5, 4, 4])
    packed = pack_padded_sequence(torch.randn(5, 4, 3), lengths, enforce_sorted=in_order)
    found = redraw(packed, 1, Plan(integers=True))
    assert isinstance(found, PackedSequence)
    assert (found.sorted_indices is None) is in_order
    assert pad_packed_sequence(found)[1].max() == 5
    model = nn.GRU(3, 2)
    report = check_equivalence(model, decompose(model), packed)
    assert report.equal, str(report)
    assert report.seeds == 3


def test_masks_stay() -> None:
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]])
    assert torch.equal(redraw(mask, 1, Plan(integers=True)), mask)


def test_little_is_tried_where_everything_is_refused() -> None:
    calls = []

    def refuses(inputs: object) -> str:
        calls.append(inputs)
        return "no"

    example = {"a": torch.randn(2, 3), "b": torch.randn(4, 5), "c": torch.arange(6)}
    assert plan(example, refuses) == Plan(refused=dict.fromkeys(plan(example, lambda _: "no").refused, "no"))
    assert len(calls) <= 24
