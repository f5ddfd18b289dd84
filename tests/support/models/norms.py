"""Norms as layers and as calls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def random_weights(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


class Call(nn.Module):
    """A function of the input and of two parameters."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor], size: int = 4) -> None:
        super().__init__()
        self.function = function
        self.w = nn.Parameter(torch.randn(size))
        self.b = nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.w, self.b)


class InCode(nn.Module):
    """Cannot be followed by torch.fx; its modules become atoms where they are."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().sum()) > 1e9:
            return x
        y: Tensor = self.norm(x)
        return y


CALLS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "layer_norm": lambda x, w, b: F.layer_norm(x, (4,), w, b),
    "layer_norm bare": lambda x, w, b: F.layer_norm(x, [3, 4], eps=0.1),
    "layer_norm weight": lambda x, w, b: F.layer_norm(x, (4,), weight=w),
    "layer_norm bias": lambda x, w, b: F.layer_norm(x, (4,), bias=b),
    "layer_norm of a shape": lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b),
    "layer_norm of a size": lambda x, w, b: F.layer_norm(x, (x.size(1), x.size(2))),
    "layer_norm of the rest": lambda x, w, b: F.layer_norm(x, x.shape[1:]),
    "torch.layer_norm": lambda x, w, b: torch.layer_norm(x, (4,), w, b, 0.1),
    "rms_norm": lambda x, w, b: F.rms_norm(x, (4,), w),
    "torch.rms_norm": lambda x, w, b: torch.rms_norm(x, (3, 4), None, 0.1),
    "group_norm": lambda x, w, b: F.group_norm(x.transpose(1, 2), 2, w, b),
    "torch.group_norm": lambda x, w, b: torch.group_norm(x, 3, eps=0.1),
    "instance_norm": lambda x, w, b: F.instance_norm(x.transpose(1, 2), weight=w, bias=b),
    "instance_norm bare": lambda x, w, b: F.instance_norm(x, eps=0.1),
    "local_response_norm": lambda x, w, b: F.local_response_norm(x, 3, alpha=0.5),
    "weight from the input": lambda x, w, b: F.layer_norm(x, (4,), x.mean((0, 1)) * w, b),
}
