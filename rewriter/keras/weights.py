"""Weights of Keras' layers as torch's: on the torch backend in the same memory, else copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from passes.recurrent.gates import linear_of


def tensor_of(variable: Any) -> Tensor:
    """Return what a variable, or an array of any backend, holds; the same tensor on the torch backend."""
    value = getattr(variable, "value", variable)
    if isinstance(value, Tensor):
        return value
    array = value.numpy() if hasattr(value, "numpy") else np.asarray(value)
    return torch.from_numpy(np.array(array))


def array_of(variable: Any) -> Any:
    """Return what a variable holds as an array."""
    return tensor_of(variable).detach().cpu().numpy()


def parameter(variable: Any, view: Callable[[Tensor], Tensor] | None = None) -> nn.Parameter:
    """Return a parameter for a variable: the same on the torch backend, or a view of its memory.

    Args:
        variable: of a layer.
        view: makes a view in torch's layout of it.

    Example:
        >>> kernel = nn.Parameter(torch.zeros(2, 3))
        >>> parameter(kernel) is kernel, parameter(kernel, torch.t).data_ptr() == kernel.data_ptr()
        (True, True)

    """
    tensor = tensor_of(variable)
    if view is None and isinstance(tensor, nn.Parameter):
        return tensor
    own = tensor.detach()
    return nn.Parameter(own if view is None else view(own), requires_grad=own.is_floating_point())


def optional(variable: Any, view: Callable[[Tensor], Tensor] | None = None) -> nn.Parameter | None:
    """Return a parameter for a variable, None for None."""
    return None if variable is None else parameter(variable, view)


def linear(kernel: Any, bias: Any, view: Callable[[Tensor], Tensor] = torch.t) -> nn.Linear:
    """Return the ``Linear`` of a kernel (I, O), which Keras multiplies from the right.

    Args:
        kernel: the variable.
        bias: the variable, or None.
        view: makes (O, I) of the kernel.

    Example:
        >>> linear(nn.Parameter(torch.ones(2, 3)), None)(torch.ones(1, 2))
        tensor([[2., 2., 2.]], grad_fn=<...>)

    """
    return linear_of(parameter(kernel, view), optional(bias, torch.flatten))
