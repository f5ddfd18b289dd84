"""Models to compare, and what a comparison found."""

from __future__ import annotations

from typing import Any

from torch import nn

from rewriter import EquivalenceReport


class Wraps(nn.Module):
    """Runs a recurrent layer, the same parameters as any other Wraps of it, and changes the result."""

    def __init__(self, rnn: nn.Module, change: Any = None) -> None:
        super().__init__()
        self.rnn = rnn
        self.change = change

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = self.rnn(*args, **kwargs)
        return self.change(result) if self.change else result


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def failing(report: EquivalenceReport) -> set[tuple[str, str]]:
    return {(each.kind, each.place) for each in report.failures}
