"""Models whose code keeps something between calls: each run of an explanation begins with what they had."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from passes.user_code.reach import reached
from passes.user_code.state import is_generator, state_of
from passes.user_code.surroundings import unnoticed
from passes.user_code.twin import Twin, own_attributes

# Lists of its parameters that a layer of torch's holds.
_FLAT = "_flat_weights", "_flat_weight_refs"


def keeps_state(model: nn.Module, inputs: list[Tensor]) -> bool:
    """Whether a run of a model changes its attributes or its buffers; it is run on a clone.

    Example:
        >>> keeps_state(nn.BatchNorm1d(2), [torch.ones(2, 2)])
        True
        >>> keeps_state(nn.BatchNorm1d(2).eval(), [torch.ones(2, 2)])
        False

    """
    twin = Twin(model)
    before = _state_of(twin.model)
    with unnoticed(model) as outside, torch.inference_mode(False), torch.no_grad():
        twin.model(*(each.clone() for each in inputs))
        wrote = bool(outside.changed())
    changed = wrote or bool(twin.written()) or _state_of(twin.model) != before
    # A generator of its own goes on whenever it is drawn from, in this run or in another.
    return changed or any(map(_has_generator, twin.model.modules()))


def _has_generator(module: nn.Module) -> bool:
    return any(is_generator(each) for value in own_attributes(module).values() for each in reached(value))


def _state_of(model: nn.Module) -> dict[tuple[str, str], list[Any]]:
    """Return the state without what torch's recurrent layers put together anew once they were cloned."""
    # On a GPU they move their parameters for it.
    again = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.RNNBase) and all(each.device.type == "cpu" for each in module.parameters())
    }
    return {
        (name, key): value
        for (name, key), value in state_of(model).items()
        if name not in again or key not in _FLAT
    }
