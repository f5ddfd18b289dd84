"""Through which gate of a recurrent layer attributions flowed.

The input of a step enters a cell by as many Linears as the cell has gates, and by nothing else. What the
model's output owes to the input of a step is therefore the sum of what it owes to the numbers that these
Linears give, and each of those belongs to one gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from passes.user_code.clone import clone_structure
from rewriter.compiler.decompose import decompose
from rewriter.engine.contexts import context_inputs
from rewriter.engine.path.nearness import Nearer
from rewriter.engine.problem import Problem
from rewriter.explainer.arguments import samples_of
from rewriter.explainer.explainer import DeepExplainer
from rewriter.explainer.layers import names_of
from rewriter.explainer.target import Output
from rewriter.extras import optional
from rewriter.plot.sequences import one_sequence
from rewriter.plot.style import DISTINCT, axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Of the gates of each layer, in torch's order.
GATES: dict[type[nn.RNNBase], tuple[str, ...]] = {
    nn.LSTM: ("input gate", "forget gate", "candidate", "output gate"),
    nn.GRU: ("reset gate", "update gate", "candidate"),
    nn.RNN: ("hidden state",),
}


class _Apart(nn.Module):
    """The Linear that feeds the gates, with an end at which they can be explained."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.weight: Any = linear.weight
        self.bias: Any = linear.bias
        self.end = nn.Identity()

    def forward(self, x: Tensor) -> Any:
        """Return the gates' part that comes from the input."""
        return self.end(nn.functional.linear(x, self.weight, self.bias))


def gate_values(
    model: nn.Module,
    layer: nn.RNNBase,
    data: Any,
    X: Any,
    *,
    level: int = 0,
    output: Output = None,
    **nearer: Unpack[Nearer],
) -> Any:
    """Return what the input of each step added through each gate of a recurrent layer.

    Each Linear from the input to a gate is taken for a player of its own: the values of its H numbers are
    summed. At each step the gates of the first level sum to what the layer's input added there, and over all
    steps to f(x) − E f, if nothing in the model goes around the layer. What reaches a gate by the hidden
    state came in at an earlier step, and is counted there, at the gate by which it came. References are
    read with the lengths and masks of the sample, for the base values, too.

    Args:
        model: the whole model.
        layer: an ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` of it, that runs once.
        data: background samples, as for :class:`rewriter.DeepExplainer`.
        X: samples.
        level: which of its ``num_layers``.
        output: what is explained of what the model returns, as for :class:`rewriter.DeepExplainer`.
        **nearer: as for :meth:`rewriter.DeepExplainer.shap_values`.

    Returns:
        A ``shap.Explanation``: values (M, T, gates), or (M, T, gates, outputs) of a model with several, the
        gates' names as ``feature_names``; the data are the means of what the Linears gave.
        A bidirectional layer has the gates of both directions.

    Raises:
        RewriteError: if the layer is none of these, or not in the model, or runs more than once.

    Example:
        >>> import pytest; _ = pytest.importorskip("shap")
        >>> import torch
        >>> class Last(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.gru, self.head = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 1)
        ...
        ...     def forward(self, x):
        ...         return self.head(self.gru(x)[0][:, -1])
        >>> model = Last()
        >>> found = gate_values(model, model.gru, torch.randn(9, 5, 3), torch.randn(2, 5, 3))
        >>> found.shape, found.feature_names
        ((2, 5, 3), ['reset gate', 'update gate', 'candidate'])

    """
    shap = optional("shap", "gate_values", "plots")
    gates = next((names for kind, names in GATES.items() if isinstance(layer, kind)), None)
    if gates is None:
        raise RewriteError(
            f"layer: expected an nn.LSTM, nn.GRU or nn.RNN of the model, got {type(layer).__name__}"
        )
    if not 0 <= level < layer.num_layers:
        raise RewriteError(f"level: expected 0 to {layer.num_layers - 1}, got {level}")
    (name, *_) = names_of(model, layer)
    references = _read_as_samples(DeepExplainer(model, data, output=output, progress=False), X)
    parts, inputs, base = [], [], None
    directions = ("forward", "reverse") if layer.bidirectional else ("forward",)
    for direction in directions:
        apart, end = _apart(model, f"{name}.layer{level}".lstrip("."), f"{direction}_input")
        found = DeepExplainer((apart, end), data, output=output, progress=False)(
            X, references=references, **nearer
        )
        values = found.values
        shape = (*values.shape[:2], len(gates), -1)
        parts.append(values.reshape(*shape, *values.shape[3:]).sum(3))
        inputs.append(found.data.reshape(shape).mean(3))
        base = found.base_values
    several = len(directions) > 1
    return shap.Explanation(
        values=np.concatenate(parts, 2),
        base_values=base,
        data=np.concatenate(inputs, 2),
        feature_names=[f"{gate}, {each}" if several else gate for each in directions for gate in gates],
        output_names=found.output_names,
    )


def _read_as_samples(explainer: DeepExplainer, X: Any) -> list[Tensor] | None:
    """Return the background once for each sample, with its lengths and masks; None where there are none.

    Such an input goes around the gates: it says how long a cell runs, besides what it is given.
    """
    samples = samples_of(X, explainer._data, explainer._multi_input)
    rows = len(samples[0])
    if not rows:
        return None
    chosen = torch.zeros(rows, 1, dtype=torch.long)
    contexts = context_inputs(explainer._target, Problem(samples, explainer._data, chosen, False))
    if not contexts:
        return None
    count = len(explainer._data[0])
    return [
        (x.unsqueeze(1) if k in contexts else x0.unsqueeze(0)).expand(rows, count, *x0.shape[1:])
        for k, (x, x0) in enumerate(zip(samples, explainer._data, strict=True))
    ]


def _apart(model: nn.Module, place: str, linear: str) -> tuple[nn.Module, nn.Module]:
    copy = clone_structure(decompose(model))
    parent = copy.get_submodule(place)
    apart = _Apart(parent.get_submodule(linear))
    parent.add_module(linear, apart)
    return copy, apart.end


def gates(
    explanation: Any,
    *,
    sample: int = 0,
    output: int = 0,
    feature_names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw what the input of each step added through each gate, on top of each other, and their sum.

    Args:
        explanation: what :func:`gate_values` returned, or an array (T, gates), (M, T, gates),
            (M, T, gates, outputs).
        sample: which of the M.
        output: which of the outputs.
        feature_names: of the gates.
        ax: to draw in.

    Raises:
        RewriteError: for shapes that do not fit, or more than ten gates.

    Example:
        >>> import pytest; _ = pytest.importorskip("matplotlib")
        >>> ax = gates(np.array([[1.0, -1.0], [2.0, 0.0]]), feature_names=["reset", "update"])
        >>> ax.get_legend_handles_labels()[1]
        ['all', 'reset: +3', 'update: -1']

    """
    sequence = one_sequence(explanation, sample, output, feature_names)
    values = sequence.values
    if values.shape[1] > len(DISTINCT):
        raise RewriteError(f"explanation: expected at most {len(DISTINCT)} gates, got {values.shape[1]}")
    ax = axes_of(ax, (7, 3))
    steps = np.arange(len(values))
    ax.plot(steps, values.sum(1), color="#222222", linewidth=1, marker=".", markersize=4, label="all")
    # Bars of either sign are put on those of the same sign.
    tops = {True: np.zeros(len(values)), False: np.zeros(len(values))}
    for k, name in enumerate(sequence.names):
        up = values[:, k] >= 0
        bottom = np.where(up, tops[True], tops[False])
        label = f"{name}: {values[:, k].sum():+.2g}"
        ax.bar(steps, values[:, k], bottom=bottom, width=0.9, color=DISTINCT[k], label=label)
        for sign in tops:
            tops[sign] = tops[sign] + np.where(up == sign, values[:, k], 0)
    ax.axhline(0, color="#222222", linewidth=0.6)
    ax.set(xlabel="time step", ylabel="SHAP value")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
    return ax
