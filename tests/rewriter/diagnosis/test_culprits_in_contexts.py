"""What loses something is named as well where lengths or masks are read beside what is explained."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rewriter import DeepExplainer, decompose, diagnose
from rewriter.explainer.additivity import AdditivityError


class Packed(nn.Module):
    """Lengths by which sequences are packed."""

    def __init__(self, *, sound: bool) -> None:
        super().__init__()
        self.lstm, self.last, self.sound = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2), sound

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        states = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0].sum(1)
        return self.last(states if self.sound else planted(states))


class Masked(nn.Module):
    """A mask of what is padded."""

    def __init__(self, *, sound: bool) -> None:
        super().__init__()
        self.gru, self.last, self.sound = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2), sound

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        states = self.gru(x)[0]
        scores = states.sum(2).masked_fill(mask == 0, float("-inf"))
        pooled = (torch.softmax(scores, 1)[..., None] * states).sum(1)
        return self.last(pooled if self.sound else planted(pooled))


class Summed(nn.Module):
    """Whole numbers that go into an atom beside what varies."""

    def __init__(self, *, sound: bool) -> None:
        super().__init__()
        self.first, self.last, self.sound = nn.Linear(3, 4), nn.Linear(4, 2), sound

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mean = torch.tanh(self.first(x).sum(1)) / lengths[:, None]
        return self.last(mean**2 if self.sound else planted(mean))


def planted(h: Tensor) -> Tensor:
    return h + torch.renorm(h, 2, 0, 0.1)


LINE = f"test_culprits_in_contexts.py:{inspect.getsourcelines(planted)[1] + 1}"
MODELS = {"packed": Packed, "masked": Masked, "summed": Summed}


def inputs(name: str, *lead: int) -> list[Tensor]:
    x, lengths = torch.randn(*lead, 5, 3, dtype=torch.float64), torch.randint(2, 6, lead)
    return [x, (torch.arange(5) < lengths[..., None]).long() if name == "masked" else lengths]


@pytest.mark.parametrize("own", [False, True], ids=["background", "references"])
@pytest.mark.parametrize("name", MODELS)
def test_the_line_is_named(name: str, *, own: bool) -> None:
    model = MODELS[name](sound=False).double().eval()
    x, background = inputs(name, 3), inputs(name, 4)
    explainer = DeepExplainer(model, background)
    references = inputs(name, 3, 4) if own else None
    with pytest.raises(AdditivityError, match=rf"\(renorm, {LINE}\): has no rule"):
        explainer.shap_values(x, references=references)


@pytest.mark.parametrize("name", MODELS)
def test_diagnose_reads_references_in_the_context_of_the_sample(name: str) -> None:
    x, background = inputs(name, 3), inputs(name, 4)
    sound = MODELS[name](sound=True).double().eval()
    found = diagnose(decompose(sound), x, background)
    assert found.broken == ()
    assert found.total < 1e-12
    faulty = diagnose(decompose(MODELS[name](sound=False).double().eval()), x, background)
    assert [(row.operation, row.source) for row in faulty.broken] == [("renorm", LINE)]


def test_the_total_is_the_error_of_the_values() -> None:
    """The context's own effect is exact: what is left are the values' errors in the contexts."""
    torch.manual_seed(0)
    model = Packed(sound=False).double().eval()
    x, background = inputs("packed", 3), inputs("packed", 4)
    values = DeepExplainer(model, background).shap_values(x, check_additivity=False)
    with torch.no_grad():
        expected = (model(*x) - model(*background).mean(0)).numpy()
    total = sum(each.reshape(3, -1, 2).sum(1) for each in values)
    found = diagnose(decompose(model), x, background)
    assert found.total == pytest.approx(float(np.abs(total - expected).max()), abs=1e-12)
