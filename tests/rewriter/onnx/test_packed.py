"""Sequences that a model packs by their lengths, in files that take the lengths."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence, pad_sequence

from passes.errors import RewriteError
from rewriter import export_onnx
from rewriter.onnx.packed import PaddedWhilePacked
from tests.support.exports import check_against_torch


class Packing(nn.Module):
    """Packs in any order and sorted, unpacks to the longest and to the axis, computes on packed data."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True, bidirectional=True, proj_size=2)
        self.between = nn.Linear(4, 6)
        self.gru = nn.GRU(6, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> dict[str, Any]:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        out, states = self.lstm(packed)
        between = out._replace(data=torch.tanh(self.between(out.data)))
        again, last = self.gru(between)
        padded, found = pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])
        longest, _ = pad_packed_sequence(again, padding_value=-7.0)
        return {"padded": padded, "found": found, "longest": longest, "states": states, "last": last}


@pytest.mark.parametrize("loops", [True, False])
def test_packed_sequences_of_any_lengths(tmp_path: Path, loops: bool) -> None:
    model = Packing()
    given = torch.randn(3, 4, 3), torch.tensor([2, 4, 3])
    report = export_onnx(model, given, tmp_path / "m.onnx", loops=loops)
    steps = "time" if loops else 4
    assert report.inputs == {"x": ("batch", steps, 3), "lengths": ("batch",)}
    assert list(report.outputs) == ["padded", "found", "longest", "states_0", "states_1", "last"]
    assert report.outputs["padded"] == ("batch", steps, 4)
    assert report.outputs["longest"] == ("length", "batch", 4)
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(2, 4, 3), torch.tensor([3, 1]))
    if loops:
        check_against_torch(tmp_path / "m.onnx", model, torch.randn(4, 9, 3), torch.tensor([1, 6, 8, 2]))


class OfData(nn.Module):
    """Reads packed data as a whole, which is something else where it stays padded."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 3, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True)
        return self.gru(packed)[1][0] + packed.data.std()


def test_what_is_computed_of_all_packed_data_is_refused(tmp_path: Path) -> None:
    given = torch.randn(2, 4, 3), torch.tensor([4, 2])
    with pytest.raises(RewriteError, match="differ by"):
        export_onnx(OfData(), given, tmp_path / "m.onnx", batch_axes={"x": 0, "lengths": 0})
    assert list(tmp_path.iterdir()) == []


def test_a_packed_output_is_refused_with_advice(tmp_path: Path) -> None:
    class Packed(OfData):
        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            return {"out": self.gru(pack_padded_sequence(x, lengths, batch_first=True))[0]}

    with pytest.raises(RewriteError, match=r"PackedSequence at output\['out'\]; pad it with .*pad_packed"):
        export_onnx(Packed(), (torch.randn(2, 4, 3), torch.tensor([4, 2])), tmp_path / "m.onnx")


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("total", [None, 5, 7])
def test_padding_stands_for_packing(batch_first: bool, total: int | None) -> None:
    sequences = [torch.randn(length, 2, 3) for length in (2, 5, 1)]
    x = pad_sequence(sequences, batch_first=batch_first)
    lengths = torch.tensor([2, 5, 1])

    def there_and_back() -> tuple[PackedSequence, Tensor, Tensor]:
        packed = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False)
        return packed, *pad_packed_sequence(packed, batch_first, 3.0, total)

    packed, *expected = there_and_back()
    with PaddedWhilePacked():
        ours, *found = there_and_back()
    assert torch.equal(ours.batch_sizes, packed.batch_sizes)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_no_sequence_of_the_example_is_as_long_as_the_axis(tmp_path: Path) -> None:
    model = Packing()
    given = torch.randn(1, 5, 3), torch.tensor([3])
    report = export_onnx(model, given, tmp_path / "m.onnx", loops=True)
    assert report.inputs == {"x": ("batch", "time", 3), "lengths": ("batch",)}
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(3, 9, 3), torch.tensor([4, 9, 1]))
