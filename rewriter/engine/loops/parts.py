"""What steps take that was made for each of them: side by side, as the input's part of the gates."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from passes.errors import RewriteError
from passes.graph.dataflow import Dataflow
from passes.operations.names import is_pointwise
from rewriter.engine.loops.repeated import Steps, rows_of_linear


class AsItIs(nn.Module):
    """Stands for the Linear that steps do not have: they take what was made for them.

    Args:
        rows: features that it has.

    Example:
        >>> AsItIs(3)(torch.ones(5, 2, 1)).shape
        torch.Size([5, 2, 3])

    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        """Return it, as wide as what each step makes of it."""
        if x.shape[-1] not in (1, self.rows):
            raise RewriteError(f"a loop: expected {self.rows} features in each step, got {x.shape[-1]}")
        return x.expand(*x.shape[:-1], self.rows)


class SideBySide(nn.Module):
    """Makes gates of several sequences, a part of them of each.

    Args:
        modules: one for each sequence.
        width: features of the gates; zeros are put behind.

    Example:
        >>> SideBySide([AsItIs(2), nn.Linear(3, 2)], 6)(torch.ones(5, 4, 2), torch.ones(5, 4, 3)).shape
        torch.Size([5, 4, 6])

    """

    def __init__(self, modules: Sequence[nn.Module], width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.width = width

    def forward(self, *sequences: Tensor) -> Tensor:
        """Return the gates, (T, B, width)."""
        made = [part(each) for part, each in zip(self.parts, sequences, strict=True)]
        rows = torch.broadcast_shapes(*(each.shape[:-1] for each in made))  # type: ignore[no-untyped-call]
        gates = torch.cat([each.expand(*rows, each.shape[-1]) for each in made], -1)
        return nn.functional.pad(gates, (0, self.width - gates.shape[-1]))


def features_of(steps: Steps, node: fx.Node, flow: Dataflow) -> int | None:
    """Return how many features a value has, if what makes it tells."""
    while True:
        rows = rows_of_linear(steps.module(node))
        if rows:
            return rows
        varying = [each for each in node.all_input_nodes if flow.varies(each)]
        pointwise = node.op == "call_module" or is_pointwise(node.target)
        if not varying or not pointwise:
            return None
        (node, *_) = varying


def in_order(graph: fx.Graph) -> None:
    """Put nodes behind all that they take, else in the order in which they stand.

    Example:
        >>> graph = fx.Graph()
        >>> x, y = graph.placeholder("x"), graph.placeholder("y")
        >>> z = graph.call_function(torch.tanh, (x,))
        >>> z.args = (y,)
        >>> y.append(x), x.append(z)
        (None, None)
        >>> x.prepend(z)
        >>> z.args = (x,)
        >>> in_order(graph)
        >>> [node.name for node in graph.nodes]
        ['y', 'x', 'tanh']

    """
    done: set[fx.Node] = set()
    ordered: list[fx.Node] = []
    for each in list(graph.nodes):
        pending = [each]
        while pending:
            missing = [] if pending[-1] in done else [x for x in pending[-1].all_input_nodes if x not in done]
            pending += missing
            if not missing:
                node = pending.pop()
                if node not in done:
                    done.add(node)
                    ordered.append(node)
    for before, node in itertools.pairwise(ordered):
        before.append(node)
