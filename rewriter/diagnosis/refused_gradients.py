"""Find the user's line whose gradient torch refuses to compute."""

from __future__ import annotations

import os
import re
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from passes.user_code.clone import frozen_clone
from passes.user_code.source import is_users, line_of, where_failed
from passes.user_code.surroundings import unnoticed

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_ADVICE = ", write it with other operations until torch.autograd.grad(model(x).sum(), x) runs"


def where_refused(
    error: Exception, model: nn.Module, select: Callable[[Any], Any], inputs: list[Tensor]
) -> str:
    """Say where a run with gradients failed: where the error came through, or what has no gradient.

    Torch's errors of a backward pass come through none of the user's code, so that the model runs once
    more, with torch noting where its calls were made.

    Args:
        error: of torch's.
        model: the user's.
        select: picks the output that is explained.
        inputs: some rows.

    Example:
        >>> where_refused(ValueError(), nn.Linear(2, 1), lambda y: y, [torch.ones(3, 2)])
        'in the model itself'

    """
    return ("" if line_of(error) else _in_backward(model, select, inputs)) or where_failed(error)


def _in_backward(model: nn.Module, select: Callable[[Any], Any], inputs: list[Tensor]) -> str:
    copy = frozen_clone(model)
    leaves = [each.detach().clone().requires_grad_(each.is_floating_point()) for each in inputs]
    floats = [each for each in leaves if each.requires_grad]
    # Calls on the way to here are none of the model's.
    depth = len(traceback.extract_stack())
    with (
        warnings.catch_warnings(record=True) as told,
        unnoticed(model),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        warnings.simplefilter("always")
        try:
            with torch.autograd.set_detect_anomaly(True, check_nan=False):
                output = select(copy(*(each.clone() for each in leaves)))
                torch.autograd.grad(output.sum(), floats, allow_unused=True)
        except Exception:
            # Torch says more in a warning than in its error.
            return next(filter(None, (_place(str(each.message), depth) for each in told)), "")
    return ""


def _place(message: str, depth: int) -> str:
    node = re.search(r"Error detected in (\w+)\.", message)
    frames = [(file, line) for file, line in _FRAME.findall(message)[depth:] if is_users(file)]
    if node is None:
        return ""
    at = f" ({os.path.basename(frames[-1][0])}:{frames[-1][1]})" if frames else ""
    return f"in {node[1]}, the gradient of torch's of a call{at}{_ADVICE}"
