"""More small models: hierarchies, several inputs or heads, cells in loops, time-first tensors."""

from __future__ import annotations

import torch
from problems.whole_models import FEATURES, HIDDEN, OUTPUTS
from torch import Tensor, nn
from torch.nn import functional as F


class Pooling(nn.Module):
    """Attention pooling of a sequence."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.hidden, self.query = nn.Linear(size, size), nn.Parameter(torch.randn(size))

    def forward(self, states: Tensor) -> Tensor:
        """Return (B, size) for (B, T, size)."""
        scores = torch.tanh(self.hidden(states)) @ self.query
        return torch.einsum("bt,bth->bh", F.softmax(scores, dim=-1), states)


class HierarchicalAttention(nn.Module):
    """Words into sentences into a document (Yang et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.GRU(FEATURES, HIDDEN, batch_first=True)
        self.sentences = nn.GRU(HIDDEN, HIDDEN, batch_first=True)
        self.of_words, self.of_sentences = Pooling(HIDDEN), Pooling(HIDDEN)
        self.head = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, OUTPUTS) for (B, sentences, words, FEATURES)."""
        batch, sentences = x.shape[:2]
        words, _ = self.words(x.reshape(batch * sentences, x.shape[2], x.shape[3]))
        pooled = self.of_words(words).view(batch, sentences, -1)
        return self.head(self.of_sentences(self.sentences(pooled)[0]))


class Siamese(nn.Module):
    """One encoder for two sequences, compared (Mueller and Thyagarajan 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(FEATURES, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a distance and a score of the products, (B, 2)."""
        a, b = self.lstm(a)[1][0][0], self.lstm(b)[1][0][0]
        near = torch.exp(-torch.abs(a - b).sum(dim=1, keepdim=True))
        return torch.cat([near, self.head(a * b)], 1)


class ActorCritic(nn.Module):
    """A policy and a value on one recurrent state."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.lstm = nn.Linear(FEATURES, HIDDEN), nn.LSTM(HIDDEN, HIDDEN, batch_first=True)
        self.policy, self.value = nn.Linear(HIDDEN, 3), nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return three probabilities and the value, (B, 4)."""
        h = self.lstm(F.silu(self.body(x)))[0][:, -1].clamp(-0.5, 0.5)
        return torch.cat([self.policy(h).softmax(-1), self.value(h).tanh() * 2], -1)


class Forecaster(nn.Module):
    """Mean and scale of each of two quantities."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(FEATURES, HIDDEN, num_layers=2, batch_first=True)
        self.mean, self.scale = nn.Linear(HIDDEN, OUTPUTS), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 2 * OUTPUTS), in units of the last value of the first feature."""
        h = F.leaky_relu(self.gru(x)[0][:, -1])
        level = 1 + x[:, :, 0].abs().mean(1, keepdim=True)
        return torch.cat([self.mean(h) * level, F.softplus(self.scale(h)).sqrt() / level], dim=-1)


class TransformerOverLSTM(nn.Module):
    """A transformer layer on the states of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(HIDDEN, 2, 2 * HIDDEN, batch_first=True, activation="gelu")
        self.head = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, OUTPUTS)."""
        return self.head(self.layer(self.lstm(x)[0]).mean(1))


class TimeFirst(nn.Module):
    """Time in dimension 0 throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.score = nn.RNN(FEATURES, HIDDEN, nonlinearity="relu"), nn.Linear(HIDDEN, 1)
        self.norm, self.head = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, OUTPUTS) for (B, T, FEATURES)."""
        states, _ = self.rnn(x.transpose(0, 1))
        states = F.mish(self.norm(states))
        return self.head((self.score(states).softmax(0) * states).sum(0))


class Decay(nn.Module):
    """A cell of the user's own: a GRU whose state decays with the gaps (after Che et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.gap = nn.GRUCell(FEATURES, HIDDEN), nn.Linear(FEATURES, HIDDEN)
        self.norm, self.head = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, OUTPUTS)."""
        h = x.new_zeros(x.size(0), HIDDEN)
        for step in x.unbind(1):
            h = h * torch.exp(-torch.relu(self.gap(step)))
            h = self.cell(step, h)
        return self.head(self.norm(h))


class ConvLSTM(nn.Module):
    """Gates from a convolution, written by hand (Shi et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Conv1d(1 + 2, 4 * 2, 3, padding=1)
        self.head = nn.Linear(2 * FEATURES, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, OUTPUTS) for (B, T, FEATURES), of which the last is space."""
        h = torch.zeros(x.shape[0], 2, FEATURES, dtype=x.dtype)
        c = torch.zeros_like(h)
        for t in range(4):
            i, f, g, o = self.gates(torch.cat([x[:, t].unsqueeze(1), h], dim=1)).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h.flatten(1))


class GatedConvolution(nn.Module):
    """WaveNet's gated convolution in front of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.filter, self.gate = (nn.Conv1d(FEATURES, HIDDEN, 2, dilation=2) for _ in range(2))
        self.lstm, self.head = nn.LSTM(HIDDEN, HIDDEN, batch_first=True), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, OUTPUTS)."""
        z = F.pad(x.mT, (2, 0))
        z = torch.tanh(self.filter(z)).mul(torch.sigmoid(self.gate(z)))
        _, (h, c) = self.lstm(z.mT)
        return self.head(F.normalize(h[-1], dim=-1) + c[-1].sin())
