"""Models whose explanations are written as pages, and pages read as a browser reads them."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

# What somebody may call a feature.
NASTY = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "\"'&<!--",
    "=HYPERLINK(1)\u2028,\n\ud800 $title é",
]


class Classifier(nn.Module):
    """Two scores of a sequence of four features."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0].sum(1))


class Packed(Classifier):
    """The same, of sequences of different length."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.gru(packed)[1][-1])


class Worded(Classifier):
    """The same, of words."""

    def __init__(self) -> None:
        super().__init__(1)
        self.embedding = nn.Embedding(9, 4)

    def forward(self, words: Tensor) -> Tensor:
        return super().forward(self.embedding(words))


def sequences(rows: int) -> Tensor:
    return torch.randn(rows, 6, 4, dtype=torch.float64)


class Page(HTMLParser):
    """What a browser sees in a file: elements with their attributes, and the text in each."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in self.open, tag
        while self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data

    @property
    def data(self) -> Any:
        """What the page's script reads."""
        (text,) = [
            text
            for text, (_, attributes) in zip(self.texts["script"], self.of("script"), strict=True)
            if attributes.get("id") == "data"
        ]
        return json.loads(text)

    def of(self, tag: str) -> list[tuple[str, dict[str, str | None]]]:
        return [each for each in self.elements if each[0] == tag]
