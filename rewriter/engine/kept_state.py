"""Models whose code keeps something between calls: each run of an explanation begins with what they had."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from passes.user_code.clone import own_tensors, private_clone
from passes.user_code.state import state_of


def fresh(model: nn.Module) -> nn.Module:
    """Clone a model with state of its own; only parameters are shared.

    Example:
        >>> model = nn.BatchNorm1d(2)
        >>> clone = fresh(model)
        >>> clone.weight is model.weight, clone.running_mean is model.running_mean
        (True, False)

    """
    clone = private_clone(model)
    own_tensors(clone)
    return clone


def keeps_state(model: nn.Module, inputs: list[Tensor]) -> bool:
    """Whether a run of a model changes its attributes or its buffers; it is run on a clone.

    Example:
        >>> keeps_state(nn.BatchNorm1d(2), [torch.ones(2, 2)])
        True
        >>> keeps_state(nn.BatchNorm1d(2).eval(), [torch.ones(2, 2)])
        False

    """
    clone = fresh(model)
    before = state_of(clone)
    with torch.inference_mode(False), torch.no_grad():
        clone(*(each.clone() for each in inputs))
    return state_of(clone) != before
