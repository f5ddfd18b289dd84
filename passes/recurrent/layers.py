"""Stand-ins for ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN``: layers and directions around recurrences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from passes.recurrent.cells import cell_atoms_of
from passes.recurrent.gates import GateLinears, linear_of
from passes.recurrent.layout import SequenceBegin, SequenceDropout, SequenceEnd, SequenceLayout
from passes.recurrent.recurrence import Recurrence
from passes.stand_in import StandIn, put_on_face, stand_in_class


class Layer(nn.Module):
    """One layer, in one direction or in both.

    Args:
        dropout: probability of the dropout behind the layer in training mode; 0 for the last layer.

    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.directions: list[str] = []
        self.dropout = SequenceDropout(dropout) if dropout else None

    def add_direction(self, direction: str, input: nn.Module, steps: Recurrence) -> None:
        """Append a direction, ``"forward"`` or ``"reverse"``."""
        self.directions.append(direction)
        steps.beside = f"{direction}_input"
        self.add_module(steps.beside, input)
        self.add_module(f"{direction}_steps", steps)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        states: Sequence[tuple[Tensor, ...]],
        layout: SequenceLayout,
    ) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """Run each direction from its state.

        Args:
            x: (T, B, F).
            mask: (T, B, 1) bool or None.
            states: one tuple of (B, H) per direction.
            layout: the caller's, for the dropout.

        Returns:
            The concatenated outputs (T, B, directions x H) and the final state of each direction.

        """
        outputs, finals = [], []
        for direction, state in zip(self.directions, states, strict=True):
            gates = self.get_submodule(f"{direction}_input")(x)
            ran = self.get_submodule(f"{direction}_steps")(gates, mask, *state)
            outputs.append(ran[0])
            finals.append(tuple(ran[1 + k] for k in range(len(state))))
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        return (out if self.dropout is None else self.dropout(out, layout)), finals


class SequenceStandIn(StandIn):
    """What the three stand-ins share: the way of a sequence through the layers."""

    num_layers: int
    bidirectional: bool
    begin: SequenceBegin
    end: SequenceEnd
    states = 1

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor | tuple[Tensor, ...]]:
        """Return what the original returns for the same arguments."""
        weight = next(self.get_submodule("layer0.forward_input").parameters())
        begun = self.begin(input, hx, weight)
        x, mask, layout = begun[0], begun[1], begun[2]
        initial = [begun[3 + k] for k in range(self.states)]
        directions = 2 if self.bidirectional else 1
        finals: list[tuple[Tensor, ...]] = []
        for index in range(self.num_layers):
            rows = range(index * directions, (index + 1) * directions)
            states = [tuple(state[row] for state in initial) for row in rows]
            x, new = self.get_submodule(f"layer{index}")(x, mask, states, layout)
            finals += new
        output = self.end(layout, x, *(final[k] for k in range(self.states) for final in finals))
        return cast("tuple[Tensor | PackedSequence, Tensor | tuple[Tensor, ...]]", output)


class LSTMStandIn(SequenceStandIn, nn.LSTM):  # type: ignore[misc]  # replaces the base's forward
    """An ``nn.LSTM`` made of atoms."""

    states = 2


class GRUStandIn(SequenceStandIn, nn.GRU):  # type: ignore[misc]  # replaces the base's forward
    """An ``nn.GRU`` made of atoms."""


class RNNStandIn(SequenceStandIn, nn.RNN):  # type: ignore[misc]  # replaces the base's forward
    """An ``nn.RNN`` made of atoms."""


STAND_INS: dict[type[nn.RNNBase], type[SequenceStandIn]] = {
    nn.LSTM: LSTMStandIn,
    nn.GRU: GRUStandIn,
    nn.RNN: RNNStandIn,
}


def build_sequence_stand_in(layer: nn.RNNBase, name: str, *, split: bool) -> SequenceStandIn:
    """Make the stand-in for ``layer``.

    Args:
        layer: an ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``, or a subclass that wraps its forward.
        name: its qualified name in the user's model.
        split: one Linear per gate, with copied weights, instead of the shared fused ones.

    Example:
        >>> lstm = nn.LSTM(3, 2)
        >>> stand_in = build_sequence_stand_in(lstm, "lstm", split=False)
        >>> stand_in.layer0.forward_input.weight is lstm.weight_ih_l0
        True

    """
    base = next(kind for kind in STAND_INS if isinstance(layer, kind))
    cls = stand_in_class(type(layer), STAND_INS[base])
    own = {name for names in layer._all_weights for name in names}
    stand_in = put_on_face(cls, layer, own, name)
    out_size = layer.proj_size or layer.hidden_size
    sizes = (out_size, layer.hidden_size) if layer.mode == "LSTM" else (out_size,)
    directions = 2 if layer.bidirectional else 1
    stand_in.begin = SequenceBegin(
        name, layer.input_size, sizes, layer.num_layers * directions, batch_first=layer.batch_first
    )
    for index in range(layer.num_layers):
        built = Layer(layer.dropout if index < layer.num_layers - 1 else 0.0).train(layer.training)
        stand_in.add_module(f"layer{index}", built)
        for direction in ("forward", "reverse")[:directions]:
            paths = _add_direction(built, layer, index, direction, name, split=split)
            stand_in._paths.update(
                (key, tuple(f"layer{index}.{path}" for path in below)) for key, below in paths.items()
            )
    stand_in.end = SequenceEnd(batch_first=layer.batch_first, states=len(sizes))
    return stand_in


def _add_direction(
    built: Layer, layer: nn.RNNBase, index: int, direction: str, name: str, *, split: bool
) -> dict[str, tuple[str, ...]]:
    """Add a direction; return where each of its parameters now lives below ``built``."""
    suffix = f"_l{index}" + ("_reverse" if direction == "reverse" else "")
    cell = cell_atoms_of(layer)
    made = GateLinears(layer, cell.gates, split=split, suffix=suffix)
    projection = None
    if layer.proj_size:
        weight = cast("nn.Parameter", layer._parameters[f"weight_hr{suffix}"])
        projection = linear_of(weight, None)
        made.paths[f"weight_hr{suffix}"] = (f"{direction}_steps.projection.weight",)
    steps = Recurrence(
        made.linear("h", f"{direction}_steps.hidden"),
        cell,
        projection,
        reverse=direction == "reverse",
        name=f"{name}.layer{index}",
    )
    built.add_direction(direction, made.linear("i", f"{direction}_input"), steps.train(layer.training))
    return made.paths
