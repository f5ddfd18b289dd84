"""Run a user's code on a copy of a model without any effect on the model."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from passes.user_code.clone import private_clone
from passes.user_code.hooks import has_hooks
from passes.user_code.reach import reached
from passes.user_code.tensors import TensorCopies

_REGISTERED = ("_parameters", "_buffers", "_modules")


class Twin:
    """A clone of a model with tensors and objects of its own, for code that may write to them.

    Args:
        original: the model; it stays as it is whatever runs on ``model``.

    Example:
        >>> original = nn.BatchNorm1d(2)
        >>> twin = Twin(original)
        >>> twin.model.running_mean.add_(1)
        tensor([1., 1.])
        >>> twin.written(), original.running_mean
        (['running_mean'], tensor([0., 0.]))

    """

    def __init__(self, original: nn.Module) -> None:
        self._copies = TensorCopies()
        self.model = private_clone(original, self._copies)

    def written(self) -> list[str]:
        """Return the places of the tensors that were changed in place or given new data."""
        return [
            f"{name}.{key}".lstrip(".")
            for name, module in self.model.named_modules()
            for holder in (module._parameters, module._buffers, own_attributes(module))
            for key, value in holder.items()
            if any(isinstance(each, Tensor) and self._copies.is_written(each) for each in reached(value))
        ]


class OnCopies(nn.Module):
    """Runs a model that writes to its tensors at most, with copies of them.

    To copy its modules, thousands of atoms perhaps, takes longer. Nobody else may run the model meanwhile.

    Args:
        model: one that :meth:`runs` says yes to.

    Example:
        >>> model = nn.BatchNorm1d(1)
        >>> _ = OnCopies(model)(torch.ones(2, 1))
        >>> model.running_mean
        tensor([0.])

    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        copies = TensorCopies()
        named = (*model.named_parameters(), *model.named_buffers())
        self.tensors = {name: copies(tensor) for name, tensor in named}

    @staticmethod
    def runs(model: nn.Module) -> bool:
        """Whether a model has nothing hooked to it, and no module by two names.

        Of such a module torch.func.functional_call puts back the wrong tensors.
        """
        once = len(list(model.named_modules(remove_duplicate=False))) == len(list(model.modules()))
        return once and not any(has_hooks(module) for module in model.modules())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        return torch.func.functional_call(self.model, self.tensors, args, kwargs)


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that are no parameters, buffers or modules of it.

    Example:
        >>> own_attributes(nn.Linear(2, 3))["in_features"]
        2

    """
    return {key: value for key, value in module.__dict__.items() if key not in _REGISTERED}


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
