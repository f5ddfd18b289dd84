"""Recurrences in an exported graph: one node each while torch exports, written out afterwards.

torch's exporter takes a quarter of a second for every step of an LSTM. So it gets to see a recurrence
as one placeholder node, in the ONNX domain ``rewriter``, whose inputs are the gates, the states and the
weights; one step is traced by torch.fx, and the node is replaced by that step, T times or in a Scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from passes.graph.tracer import AtomTracer
from passes.recurrent.cell_layers import CellStandIn
from passes.recurrent.recurrence import Recurrence, State, step
from passes.replacement import become

DOMAIN = "rewriter"
STEPS = "Steps"


class Step(nn.Module):
    """One step with all its weights; exists only to be traced.

    Args:
        input: what makes gates of the input, or None where gates come in.
        hidden: the ``Linear`` from the hidden state to the gates.
        cell: the cell's atoms.
        projection: the ``Linear`` behind an LSTM's cell, or None.

    """

    def __init__(
        self, input: nn.Module | None, hidden: nn.Module, cell: nn.Module, projection: nn.Linear | None
    ) -> None:
        super().__init__()
        self.input = input
        self.hidden = hidden
        self.cell = cell
        self.projection = projection
        self.states: int = cell.states  # type: ignore[assignment]  # every cell has this class attribute

    def forward(self, x: Tensor, *state: Tensor) -> State:
        """Return the new state."""
        gates = x if self.input is None else self.input(x)
        return step(self, self.cell, gates, tuple(state[k] for k in range(self.states)))


class Deferred(nn.Module):
    """Stands for a recurrence or a cell while torch exports the model around it.

    Args:
        body: one step.
        key: under which the body is found again.
        name: its place in the model.
        reverse: run from the last step to the first.

    """

    def __init__(self, body: Step, key: int, name: str, *, reverse: bool = False) -> None:
        super().__init__()
        self.body = body
        self.graph = AtomTracer().trace(body)
        self.weights = [name for name, _ in body.named_parameters(remove_duplicate=False)]
        self.key = key
        self.name = name
        self.reverse = reverse
        #: The graph of a step as torch exports it; None where it is written by ourselves.
        self.exported: Any = None

    def symbolic(
        self, x: Tensor, state: State, shapes: list[tuple[Any, ...]], mask: Tensor | None = None
    ) -> State:
        """Make the placeholder node; a mask goes in last."""
        weights = [self.body.get_parameter(name) for name in self.weights]
        outputs = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{STEPS}",
            (x, *state, *weights, *(() if mask is None else (mask,))),
            {"key": self.key, "features": [int(each.shape[-1]) for each in (x, *state)]},
            dtypes=[x.dtype] * len(shapes),
            shapes=shapes,
            version=1,
        )
        return tuple(outputs)

    def widths(self, features: Sequence[int]) -> dict[fx.Node, list[int]]:
        """Return the number of features of each value in the graph of a step, given those that go in."""
        recorder = _Widths(self.body, graph=self.graph)
        weight = next(self.body.parameters())
        with torch.no_grad():
            recorder.run(*(weight.new_zeros(1, width) for width in features))
        return recorder.widths


class _Widths(fx.Interpreter):
    def __init__(self, module: nn.Module, *, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.widths: dict[fx.Node, list[int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        values = (result,) if isinstance(result, Tensor) else result
        self.widths[n] = [each.shape[-1] for each in values]
        return result


class DeferredRecurrence(Deferred):
    """Stands for a recurrence; its Linears are found where the recurrence had them."""

    @property
    def hidden(self) -> nn.Module:
        """The ``Linear`` from the hidden state to the gates."""
        return self.body.hidden

    @property
    def cell(self) -> nn.Module:
        """The cell's atoms."""
        return self.body.cell

    @property
    def projection(self) -> nn.Module | None:
        """The ``Linear`` behind an LSTM's cell, or None."""
        return self.body.projection

    def forward(self, gates: Tensor, mask: Tensor | None, *state: Tensor) -> State:
        """Return what has the shapes of the recurrence's outputs."""
        shapes = [(gates.shape[0], *state[0].shape), *(tuple(each.shape) for each in state)]
        return self.symbolic(gates, state, shapes, mask)


class DeferredCell(Deferred):
    """Stands for a cell's step, its Linear for the input included."""

    def forward(self, x: Tensor, _: Tensor, *state: Tensor) -> State:
        """Return what has the shapes of the new state."""
        return self.symbolic(x, state, [tuple(each.shape) for each in state])


class Passed(nn.Module):
    """Stands where a Linear was whose work is done by a :class:`Deferred`: hands its input on.

    Args:
        linear: the Linear, or one per gate, whose parameters code around may ask for.

    """

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def __getattr__(self, name: str) -> Any:
        linear = self.__dict__.get("_modules", {}).get("linear")
        if linear is None or name == "linear":
            return super().__getattr__(name)
        return getattr(linear, name)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x


def defer_steps(model: nn.Module) -> dict[int, Deferred]:
    """Let a node stand for each recurrence and cell of ``model``, which is changed in place.

    Returns:
        What stands for them, by key.

    """
    deferred: dict[int, Deferred] = {}
    for path, module in list(model.named_modules()):
        key = len(deferred)
        if isinstance(module, Recurrence):
            body = Step(None, module.hidden, module.cell, module.projection)
            layer, _, _ = path.rpartition(".")
            name = f"{layer}.{'reverse' if module.reverse else 'forward'}"
            deferred[key] = DeferredRecurrence(body, key, name, reverse=module.reverse)
            become(module, deferred[key])
        elif isinstance(module, CellStandIn):
            body = Step(module.input, module.hidden, module.step, None)
            deferred[key] = DeferredCell(body, key, path or "cell")
            module.input, module.hidden, module.step = (
                Passed(module.input),
                Passed(module.hidden),
                deferred[key],
            )
    return deferred
