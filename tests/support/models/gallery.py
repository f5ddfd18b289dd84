"""Models of the kinds that people build around recurrent layers; most of them do not trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


class Classifier(nn.Module):
    """The plain case: traces as a whole."""

    def __init__(self, kind: str = "LSTM", **options: object) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(3, 4, batch_first=True, **options)
        width = (options.get("proj_size") or 4) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Widened(Classifier):
    """A linear layer in front, whose output can be explained instead of the input."""

    def __init__(self, kind: str = "LSTM") -> None:
        super().__init__(kind)
        self.norm = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


class ValueControlFlow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        if out.mean() > 10:
            return self.head(-out[:, -1])
        return self.head(out[:, -1])


class Packing(nn.Module):
    """Lengths come from the padding, as in text models."""

    def __init__(self, kind: str = "LSTM", *, sort: bool = False, **options: object) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(3, 4, batch_first=True, **options)
        self.sort = sort

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        lengths = (x.abs().sum(-1) > 0).sum(1)
        if self.sort:
            lengths, order = lengths.sort(descending=True)
            x = x[order]
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=self.sort)
        out, state = self.rnn(packed)
        padded, _ = pad_packed_sequence(out, batch_first=True)
        return padded, (state[0] if isinstance(state, tuple) else state)


class ReadsLength(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 4)
        c = torch.zeros_like(h)
        for t in range(x.size(1)):
            h, c = self.cell(x[:, t], (h, c))
        return self.head(h)


class DictInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        out, h = self.gru(batch["x"], batch.get("h"))
        return {"out": out, "h": h}


@dataclass
class Batch:
    x: Tensor
    scale: float = 1.0


class DataclassInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, batch: Batch) -> Tensor:
        return self.gru(batch.x * batch.scale)[0]


class Output(NamedTuple):
    """What a model with named outputs returns."""

    logits: Tensor
    state: tuple[Tensor, Tensor]


class NamedOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Output:
        out, state = self.lstm(x)
        return Output(out[:, -1], state)


class ReadsFace(nn.Module):
    """Reads every attribute of its layer that parents read."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> Tensor:
        self.lstm.flatten_parameters()
        if not isinstance(self.lstm, nn.LSTM):
            raise TypeError
        batch = x.shape[0] if self.lstm.batch_first else x.shape[1]
        if hx is None:
            directions = 2 if self.lstm.bidirectional else 1
            like = self.lstm.weight_hh_l0
            h = like.new_zeros(self.lstm.num_layers * directions, batch, self.lstm.hidden_size)
            hx = (h, h.clone())
        out, (h_n, _) = self.lstm(x, hx)
        return torch.cat([out[:, -1], h_n[-1]], -1)


class Scaled(nn.LSTM):
    """A subclass that only wraps the forward."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.norm = nn.LayerNorm(self.input_size)

    def forward(  # type: ignore[override]
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        out, state = super().forward(self.norm(input), hx)
        return 2 * out, state


class HoldsSubclass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = Scaled(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


class Stateful(nn.Module):
    """Keeps its state between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        out, self.state = self.gru(x, self.state)
        return out


class Unregistered(nn.Module):
    """Holds its layers in a plain list, by mistake."""

    def __init__(self) -> None:
        super().__init__()
        self.rnns = [nn.GRU(3, 4, batch_first=True), nn.GRU(4, 4, batch_first=True)]

    def forward(self, x: Tensor) -> Tensor:
        for rnn in self.rnns:
            x, _ = rnn(x)
        return x


class TwoNames(nn.Module):
    """One layer registered twice and called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(3, 3, batch_first=True)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)[0])[0]


class OptionalFlag(nn.Module):
    """An identity test on an argument, which a trace would fix."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        out = self.gru(x)[0]
        if mask is not None:
            out = out * mask.unsqueeze(-1)
        return out


class FunctionalDropout(nn.Module):
    """Reads ``self.training``, which a trace would fix."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.gru(x)[0], 0.5, training=self.training)


class RandomStart(nn.Module):
    """Draws a number whose shape does not depend on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x + torch.rand(3))[0]


class NoGradEncoder(nn.Module):
    """Encodes without gradients, which a trace would drop."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(3, 4, batch_first=True)
        self.head = nn.GRU(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            encoded = self.encoder(x)[0]
        return self.head(encoded)[0]


class TeacherForcing(nn.Module):
    """Encoder and decoder, the decoder step by step with attention-free feedback."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(3, 4, batch_first=True)
        self.decoder = nn.LSTMCell(2, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor, target: Tensor | None = None, steps: int = 3) -> Tensor:
        _, (h, c) = self.encoder(x)
        state = (h[0], c[0])
        y = x.new_zeros(x.size(0), 2)
        outputs = []
        for t in range(steps):
            state = self.decoder(y, state)
            y = self.out(state[0])
            outputs.append(y)
            if target is not None:
                y = target[:, t]
        return torch.stack(outputs, 1)


class PackedThrough(nn.Module):
    """Takes a packed sequence and hands it on."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.GRU(3, 4, bidirectional=True)
        self.second = nn.LSTM(8, 4, proj_size=2)

    def forward(self, packed: PackedSequence) -> tuple[PackedSequence, Tensor]:
        out, _ = self.first(packed)
        out, (h, _) = self.second(out)
        return out, h
