"""The values of a cell's step as rows of H numbers: what cuts them apart, or joins them, computes nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from rewriter.engine.sweeps.tried_out import NotElementwiseError, random, run

#: A node that computes, and which of its rows.
Piece = tuple[fx.Node, int]


class Pieces:
    """Of which rows the values of a graph are made, found by running what only moves numbers.

    Args:
        width: numbers of a row, H.

    Example:
        >>> graph = fx.Graph()
        >>> gates = graph.placeholder("gates")
        >>> second = graph.call_method("narrow", (gates, -1, 3, 3))
        >>> pieces = Pieces(3)
        >>> pieces.make(gates, 2)
        >>> pieces.move(second)
        >>> pieces.of[second]
        ((gates, 1),)

    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.of: dict[fx.Node, tuple[Piece, ...]] = {}
        self._values: dict[fx.Node, Any] = {}
        self._rows: list[tuple[Piece, Tensor]] = []
        self._draw = torch.Generator().manual_seed(0)

    def make(self, node: fx.Node, count: int) -> None:
        """Note a node that computes so many rows."""
        # Two rows of a batch, so that what mixes them is seen.
        value = random(2 * count * self.width, self._draw).view(2, -1)
        self._values[node] = value
        self.of[node] = tuple((node, k) for k in range(count))
        self._rows += zip(self.of[node], value.chunk(count, -1), strict=True)

    def compute(self, node: fx.Node, operands: list[fx.Node]) -> None:
        """Note a node that makes as many rows of its operands as these have.

        Raises:
            NotElementwiseError: if they differ in that.

        """
        counts = {len(self.of.get(each, ())) for each in operands}
        if len(counts) != 1 or not all(counts):
            raise NotElementwiseError(f"{node.target} takes values of several sizes")
        self.make(node, counts.pop())

    def move(self, node: fx.Node) -> None:
        """Find out of which rows a call makes its result.

        Raises:
            NotElementwiseError: if it makes anything else of them than whole rows, in their order.

        """
        if not all(each in self._values for each in node.all_input_nodes):
            raise NotElementwiseError(f"{node.target} may mix elements of the state")
        self._values[node] = result = run(node, self._values)
        if isinstance(result, Tensor):
            if result.dim() != 2 or not result.shape[1] or result.shape[1] % self.width:
                raise NotElementwiseError(f"{node} is no whole piece of the gates")
            self.of[node] = tuple(
                self._piece(node, each) for each in result.chunk(result.shape[1] // self.width, -1)
            )

    def _piece(self, node: fx.Node, row: Tensor) -> Piece:
        for piece, each in self._rows:
            if row.dtype == each.dtype and torch.equal(row, each):
                return piece
        raise NotElementwiseError(f"{node} is no whole piece of the gates")

    def at(self, width: int) -> Pieces:
        """Return the same for rows of another width.

        Raises:
            NotElementwiseError: if there it is something else.

        """
        other = Pieces(width)
        for node in self._values:
            own = self.of.get(node)
            if own and own[0] == (node, 0):
                other.make(node, len(own))
            else:
                other.move(node)
        if other.of != self.of:
            raise NotElementwiseError("the pieces of the gates have sizes of their own")
        return other
