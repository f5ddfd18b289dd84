"""Modules that are scripted, in a copy of a model: nobody may give them another forward."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn


class Scripted(nn.Module):
    """Calls a scripted module in a copy of a model, and has all else of it.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(action="ignore"):
        ...     tanh = torch.jit.script(nn.Tanh())
        >>> Scripted(tanh)(torch.zeros(1)), Scripted(tanh).original_name
        (tensor([0.]), 'Tanh')

    """

    def __init__(self, scripted: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.__dict__["_scripted"] = scripted
        self._modules = OrderedDict(scripted.named_children())
        self._parameters = OrderedDict(scripted.named_parameters(recurse=False))
        self._buffers = OrderedDict(scripted.named_buffers(recurse=False))
        self.training = scripted.training

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_scripted"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        return self._scripted(*args, **kwargs)


def wrap_scripted(copy: nn.Module) -> None:
    """Put a module of Python's around each that is scripted; only in a copy that nobody else has."""
    for module in list(copy.modules()):
        if not isinstance(module, torch.jit.ScriptModule | Scripted):
            for name, child in module._modules.items():
                if isinstance(child, torch.jit.ScriptModule):
                    module._modules[name] = Scripted(child)
