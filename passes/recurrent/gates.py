"""The Linears that compute the gates, fused as torch stores them or one per gate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SplitGates(nn.Module):
    """One ``Linear`` per gate, the layout ``fc_ii, fc_if, …`` of a hand-written cell.

    The weights are copies of the rows of the fused ones.

    Args:
        names: name of each gate's Linear, in torch's order of the gates.
        weight: the fused weight, (gates x H, F).
        bias: the fused bias, (gates x H,), or None.

    Example:
        >>> split = SplitGates(["fc_ir", "fc_iz", "fc_in"], torch.ones(6, 4), None)
        >>> [name for name, _ in split.named_children()], split(torch.ones(1, 4)).shape
        (['fc_ir', 'fc_iz', 'fc_in'], torch.Size([1, 6]))

    """

    def __init__(self, names: Sequence[str], weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        weights = weight.detach().chunk(len(names))
        trains_bias = bias is not None and bias.requires_grad
        biases = [None] * len(names) if bias is None else bias.detach().chunk(len(names))
        for name, w, b in zip(names, weights, biases, strict=True):
            self.add_module(
                name,
                linear_of(
                    nn.Parameter(w.clone(), requires_grad=weight.requires_grad),
                    None if b is None else nn.Parameter(b.clone(), requires_grad=trains_bias),
                ),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return all gates' pre-activations, (…, gates x H)."""
        return torch.cat([linear(x) for linear in self.children()], -1)


class OrderedGates(nn.Module):
    """A ``Linear`` whose gates are stored in another order than torch's.

    Args:
        linear: to all gates as they are stored.
        order: the places of torch's gates among them.

    Example:
        >>> swapped = OrderedGates(nn.Linear(3, 6), (1, 0, 2))
        >>> x = torch.randn(4, 3)
        >>> bool((swapped(x)[:, :2] == swapped.linear(x)[:, 2:4]).all())
        True

    """

    def __init__(self, linear: nn.Linear, order: Sequence[int]) -> None:
        super().__init__()
        self.linear = linear
        self.order = tuple(order)

    def forward(self, x: Tensor) -> Tensor:
        """Return all gates' pre-activations in torch's order, (…, gates x H)."""
        return self.in_order(self.linear(x), -1)

    def in_order(self, stored: Tensor, dim: int) -> Tensor:
        """Bring gates along a dimension into torch's order."""
        gates = stored.chunk(len(self.order), dim)
        return torch.cat([gates[k] for k in self.order], dim)


def linear_of(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """Make a ``Linear`` whose parameters are the given ones, not copies.

    Example:
        >>> weight = nn.Parameter(torch.ones(2, 3))
        >>> linear_of(weight, None).weight is weight
        True

    """
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = weight
    linear.register_parameter("bias", bias)
    return linear


class GateLinears:
    """Makes the Linears from one source to all gates of a layer or cell, and notes where parameters go.

    Args:
        layer: owns the fused parameters ``weight_ih…``, ``weight_hh…`` and the biases.
        gates: the gates' letters in torch's order.
        split: one Linear per gate with copied weights, instead of one that shares them.
        suffix: of the parameters' names, such as ``"_l0"``.

    Example:
        >>> made = GateLinears(nn.GRUCell(4, 2, bias=False), "rzn", split=True)
        >>> made.linear("h", "hidden")
        SplitGates(
          (fc_hr): Linear(in_features=2, out_features=2, bias=False)
          (fc_hz): Linear(in_features=2, out_features=2, bias=False)
          (fc_hn): Linear(in_features=2, out_features=2, bias=False)
        )
        >>> made.paths["weight_hh"]
        ('hidden.fc_hr.weight', 'hidden.fc_hz.weight', 'hidden.fc_hn.weight')

    """

    def __init__(self, layer: nn.Module, gates: str, *, split: bool, suffix: str = "") -> None:
        self.layer = layer
        self.gates = gates
        self.split = split
        self.suffix = suffix
        #: Where each of the layer's parameters lives below the place in which the Linears are put.
        self.paths: dict[str, tuple[str, ...]] = {}

    def linear(self, source: str, path: str) -> nn.Module:
        """Return the Linear, or Linears, from the input (``"i"``) or the hidden state (``"h"``).

        Args:
            source: of the two.
            path: where it is going to be.

        """
        names = {leaf: f"{leaf}_{source}h{self.suffix}" for leaf in ("weight", "bias")}
        weight, bias = (self.layer._parameters.get(name) for name in names.values())
        assert weight is not None
        made: nn.Module = linear_of(weight, bias)
        if self.split:
            made = SplitGates([f"fc_{source}{gate}" for gate in self.gates], weight, bias)
        self.paths[names["weight"]] = gate_paths(path, made, "weight")
        if bias is not None:
            self.paths[names["bias"]] = gate_paths(path, made, "bias")
        return made


def gate_paths(path: str, module: nn.Module, leaf: str) -> tuple[str, ...]:
    """Say where ``leaf``, weight or bias, of all gates lives if ``module`` is placed at ``path``.

    Example:
        >>> gate_paths("input", linear_of(nn.Parameter(torch.ones(2, 2)), None), "weight")
        ('input.weight',)

    """
    if isinstance(module, SplitGates):
        return tuple(f"{path}.{gate}.{leaf}" for gate, _ in module.named_children())
    return (f"{path}.{leaf}",)
