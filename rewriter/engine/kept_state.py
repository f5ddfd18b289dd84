"""Models whose code keeps something between calls: each run of an explanation begins with what they had."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from passes.user_code.state import state_of
from passes.user_code.surroundings import unnoticed
from passes.user_code.twin import Twin


def keeps_state(model: nn.Module, inputs: list[Tensor]) -> bool:
    """Whether a run of a model changes its attributes or its buffers; it is run on a clone.

    Example:
        >>> keeps_state(nn.BatchNorm1d(2), [torch.ones(2, 2)])
        True
        >>> keeps_state(nn.BatchNorm1d(2).eval(), [torch.ones(2, 2)])
        False

    """
    twin = Twin(model)
    before = state_of(twin.model)
    with unnoticed(model) as outside, torch.inference_mode(False), torch.no_grad():
        twin.model(*(each.clone() for each in inputs))
        wrote = bool(outside.changed())
    return wrote or bool(twin.written()) or state_of(twin.model) != before
