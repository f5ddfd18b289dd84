"""Small models of the kinds that people build around recurrent layers, written the way they write them.

All forward passes are on purpose as found in the wild: functions, methods, operators, modules used
more than once, in-place operations, loops over time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

FEATURES, HIDDEN, OUTPUTS, STEPS, WORDS = 3, 8, 2, 6, 20


class AdditiveAttention(nn.Module):
    """LSTM, attention of Bahdanau et al. over its states."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.key, self.score = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 1, bias=False)
        self.head = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, OUTPUTS)."""
        states, _ = self.lstm(x)
        weights = F.softmax(self.score(torch.tanh(self.key(states))), dim=1)
        return self.head((weights * states).sum(dim=1))


class SelfAttention(nn.Module):
    """LSTM, scaled dot-product attention of its states to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.head = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, OUTPUTS)."""
        q, k, v = self.qkv(self.lstm(x)[0]).chunk(3, dim=-1)
        weights = torch.softmax(q @ k.transpose(-2, -1) / HIDDEN**0.5, -1)
        return self.head((weights @ v).mean(1))


class CNNLSTM(nn.Module):
    """Convolutions over time, one ReLU used twice, then an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(FEATURES, HIDDEN, 3, padding=1)
        self.conv2 = nn.Conv1d(HIDDEN, HIDDEN, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool1d(2)
        self.lstm = nn.LSTM(HIDDEN, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, OUTPUTS)."""
        z = self.relu(self.conv1(x.transpose(1, 2)))
        z = self.pool(self.relu(self.conv2(z)))
        return self.head(self.lstm(z.transpose(1, 2))[0][:, -1])


class LSTMFCN(nn.Module):
    """LSTM beside a fully convolutional net (Karim et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.conv1, self.norm1 = nn.Conv1d(FEATURES, HIDDEN, 5, padding=2), nn.BatchNorm1d(HIDDEN)
        self.conv2, self.norm2 = nn.Conv1d(HIDDEN, HIDDEN, 3, padding=1), nn.BatchNorm1d(HIDDEN)
        self.head = nn.Linear(2 * HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities, (B, OUTPUTS)."""
        z = x.permute(0, 2, 1)
        z = F.relu(self.norm1(self.conv1(z)))
        z = F.relu(self.norm2(self.conv2(z)), inplace=True)
        both = torch.cat([self.lstm(x)[0][:, -1], z.mean(-1)], dim=-1)
        return F.log_softmax(self.head(both), dim=-1)


class Seq2Seq(nn.Module):
    """Encoder and attending decoder with teacher forcing; explains a whole output sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.decoder = nn.LSTM(OUTPUTS, HIDDEN, batch_first=True)
        self.out = nn.Linear(2 * HIDDEN, OUTPUTS)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Return (B, steps of the target * OUTPUTS)."""
        memory, state = self.encoder(x)
        decoded, _ = self.decoder(target, state)
        weights = torch.bmm(decoded, memory.permute(0, 2, 1)).softmax(dim=2)
        context = torch.bmm(weights, memory)
        return self.out(torch.cat((decoded, context), 2)).flatten(1)


class GatedResidual(nn.Module):
    """The gated residual network of temporal fusion transformers (Lim et al. 2021)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(size, size), nn.Linear(size, size)
        self.gate, self.norm = nn.Linear(size, 2 * size), nn.LayerNorm(size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the shape of ``x``."""
        return self.norm(x + F.glu(self.gate(self.fc2(F.elu(self.fc1(x)))), dim=-1))


class TemporalFusion(nn.Module):
    """Variable selection, LSTM and self-attention between gated residual networks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.select = nn.Linear(FEATURES, HIDDEN), nn.Linear(FEATURES, HIDDEN)
        self.lstm = nn.LSTM(HIDDEN, HIDDEN, batch_first=True)
        self.enrich, self.after = GatedResidual(HIDDEN), GatedResidual(HIDDEN)
        self.attention = nn.MultiheadAttention(HIDDEN, 2, batch_first=True)
        self.head = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, OUTPUTS)."""
        chosen = self.embed(x) * self.select(x).softmax(-1)
        z = self.enrich(self.lstm(chosen)[0])
        attended, _ = self.attention(z, z, z)
        return self.head(self.after(z + attended)[:, -1])


class EncoderDecoderGRU(nn.Module):
    """A decoder that feeds on its own outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.cell, self.out = nn.GRUCell(OUTPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.start = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        """Return three steps ahead, (B, 3 * OUTPUTS)."""
        h = self.encoder(x)[1][-1]
        y, outputs = self.start(h).tanh(), []
        for _ in range(3):
            h = self.cell(y, h)
            y = self.out(h)
            outputs.append(y)
        return torch.cat(outputs, dim=1)


class MaxOverTime(nn.Module):
    """Stacked bidirectional LSTM, the largest state over time."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.head = nn.Sequential(nn.Linear(2 * HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUTPUTS))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, OUTPUTS)."""
        return self.head(self.lstm(x)[0].max(dim=1).values)


class TextClassifier(nn.Module):
    """Embedding and packed LSTM; a mean over the words that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, FEATURES, padding_idx=0)
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * HIDDEN, OUTPUTS)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return (B, OUTPUTS)."""
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.head(torch.relu(states.sum(1) / lengths.unsqueeze(-1)))


class ResidualLSTM(nn.Module):
    """LSTM layers with LayerNorm and residual connections."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.layers = nn.ModuleList(nn.LSTM(HIDDEN, HIDDEN, batch_first=True) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(2))
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, OUTPUTS)."""
        z = self.first(x)
        for lstm, norm in zip(self.layers, self.norms, strict=True):
            z = z + self.drop(norm(lstm(z)[0]))
        return self.head(F.gelu(z[:, -1]))


class AudioTagger(nn.Module):
    """Convolutions over a spectrogram, a GRU over its frames."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d((2, 1))
        )
        self.gru = nn.GRU(4 * FEATURES, HIDDEN, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        """Return probabilities, (B, OUTPUTS), for spectrograms (B, 1, 2 * FEATURES, frames)."""
        z = self.conv(x)
        z = z.permute(0, 3, 1, 2).reshape(z.size(0), z.size(3), -1)
        return torch.sigmoid(self.head(self.gru(z)[0].mean(dim=1)))
