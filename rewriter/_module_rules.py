"""Attribution rules for torch's own modules, beside those of the atoms: the ones that stock shap has.

They act on pairs, (n, *shape), and on the multipliers of K outputs, (K, n, *shape).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rewriter._elementwise_rules import chord_multiplier
from rewriter._multipliers import Operands, Rule, relu_multiplier, sigmoid_multiplier, tanh_multiplier
from rewriter._pulls import BoundRule, elementwise, rule_of

# Torch's modules whose every output element depends, for the rule, on one input element. Softmax is
# among them because stock shap treats it so: additive, but blind to what one class takes from another.
_ELEMENTWISE = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Softmax,
    nn.Softplus,
    nn.Softsign,
    nn.Tanhshrink,
)
_TABLE: dict[type[nn.Module], Rule] = {
    nn.ReLU: relu_multiplier,
    nn.Sigmoid: sigmoid_multiplier,
    nn.Tanh: tanh_multiplier,
}
_POOLS: dict[type[nn.Module], Any] = {
    nn.MaxPool1d: F.max_pool1d,
    nn.MaxPool2d: F.max_pool2d,
    nn.MaxPool3d: F.max_pool3d,
}


def bound_rule_for(module: nn.Module) -> BoundRule | None:
    """Return the rule for an atom, or for a module of torch's that stock shap has a rule for, else None.

    Example:
        >>> bound_rule_for(nn.Linear(1, 1)) is None, bound_rule_for(nn.ReLU()) is None
        (True, False)

    """
    kind = type(module)
    if kind in _TABLE:
        return elementwise(_TABLE[kind])
    if kind in _ELEMENTWISE:
        return elementwise(partial(chord_multiplier, module.forward))
    if kind in _POOLS:
        return BoundRule(partial(_by_position, module, _POOLS[kind]), elementwise=False)
    return rule_of(module)


def _by_position(
    module: nn.Module, pool: Any, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor
) -> Operands:
    """Give what a window rises to where the sample has its maximum, what it falls to the reference's."""
    higher = torch.maximum(y, y0)
    delta = x[0] - x0[0]
    given = _to_maxima(module, pool, x[0], d * (higher - y0)) + _to_maxima(
        module, pool, x0[0], d * (y - higher)
    )
    close = delta.abs() < 1e-7
    return (torch.where(close, 0, given / torch.where(close, 1, delta)),)


def _to_maxima(module: Any, pool: Any, x: Tensor, given: Tensor) -> Tensor:
    """Add what each window is given to the place of its maximum; windows may overlap."""
    space = {F.max_pool1d: 1, F.max_pool2d: 2, F.max_pool3d: 3}[pool]
    lead = x.shape[:-space]
    _, index = pool(
        x.reshape(-1, *x.shape[-space - 1 :]),
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.ceil_mode,
        return_indices=True,
    )
    flat = given.flatten(-space)
    index = index.reshape(*lead, -1).expand(flat.shape)
    result = flat.new_zeros(*flat.shape[:-1], x.shape[-space:].numel())
    return torch.unflatten(result.scatter_add_(-1, index, flat), -1, x.shape[-space:])
