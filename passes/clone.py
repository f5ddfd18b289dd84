"""Copy the structure of a model while sharing its tensors."""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

M = TypeVar("M", bound=nn.Module)


def clone_structure(model: M) -> M:
    """Return a model of fresh modules that hold the very same parameters and buffers.

    Modules that are registered twice, held in plain containers, or referred to by bound methods and
    hooks are followed, so that nothing in the clone leads back into the original. Scripted modules
    cannot be taken apart and stay shared.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> clone = clone_structure(model)
        >>> clone[0] is model[0], clone[0].weight is model[0].weight
        (False, True)

    """
    return named_clones(model)[0]


def named_clones(model: M) -> tuple[M, dict[str, nn.Module]]:
    """Clone as :func:`clone_structure` does; return also every module of the clone, by name.

    The names are the qualified names where a module is registered, else the attribute that holds it.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> model.spare = [nn.GRU(2, 2)]
        >>> list(named_clones(model)[1])
        ['', '0', 'spare[0]']

    """
    cloner = _Cloner()
    cloner.register(model)
    clone: M = cloner.module(model, "")
    names = dict(cloner.registered)
    found: dict[str, nn.Module] = {}
    for original, path in cloner.paths.items():
        found[names.get(original, path)] = cloner.seen[original]
    return clone, found


class _Cloner:
    def __init__(self) -> None:
        self.seen: dict[int, Any] = {}
        self.registered: dict[int, str] = {}
        self.paths: dict[int, str] = {}

    def register(self, model: nn.Module) -> None:
        for name, module in model.named_modules():
            self.registered[id(module)] = ".".join(part for part in name.split(".") if part != "_orig_mod")

    def module(self, module: Any, path: str) -> Any:
        """Clone one module; compiled modules give way to what they were compiled from."""
        if id(module) in self.seen:
            return self.seen[id(module)]
        if isinstance(getattr(module, "_orig_mod", None), nn.Module):
            return self.module(module._orig_mod, path)
        if isinstance(module, torch.jit.ScriptModule):
            for name, part in module.named_modules():
                self.seen[id(part)] = part
                self.paths[id(part)] = ".".join(filter(None, (path, name)))
            return module
        self.paths[id(module)] = path
        kind: type[nn.Module] = type(module)
        new: Any = kind.__new__(kind)
        self.seen[id(module)] = new
        state = {}
        for key, value in module.__dict__.items():
            if key != "_graph":
                below = "" if key in ("_modules", "_parameters", "_buffers") else key
                state[key] = self.value(value, ".".join(filter(None, (path, below))))
        # A compiled forward would run the original.
        state.pop("_compiled_call_impl", None)
        new.__dict__.update(state)
        if isinstance(module, fx.GraphModule):
            # The setter compiles the code; a graph belongs to one module only.
            new.graph = copy.deepcopy(module.graph)
        return new

    def value(self, value: Any, path: str) -> Any:
        """Map one attribute; whatever holds no module is shared."""
        if isinstance(value, nn.Module):
            return self.module(value, path)
        if isinstance(value, str | int | float | Tensor | type | types.FunctionType) or value is None:
            return value
        if isinstance(value, types.MethodType):
            owner = self.value(value.__self__, path)
            return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
        if type(value) is functools.partial:
            arguments = [self.value(item, path) for item in value.args]
            keywords = {key: self.value(item, path) for key, item in value.keywords.items()}
            return functools.partial(self.value(value.func, path), *arguments, **keywords)
        return self.container(value, path)

    def container(self, value: Any, path: str) -> Any:
        if id(value) in self.seen:
            return self.seen[id(value)]
        kind = type(value)
        if kind in (dict, OrderedDict):
            new: Any = kind()
            self.seen[id(value)] = new
            for key, item in value.items():
                new[key] = self.value(item, ".".join(filter(None, (path, str(key)))))
            return new
        if kind is list:
            new = []
            self.seen[id(value)] = new
            new.extend(self.value(item, f"{path}[{k}]") for k, item in enumerate(value))
            return new
        if kind in (tuple, set, frozenset):
            return kind(self.value(item, f"{path}[{k}]") for k, item in enumerate(value))
        return self.holder(value, path)

    def holder(self, value: Any, path: str) -> Any:
        """Copy a plain object only if one of its own attributes is a module."""
        attributes = getattr(value, "__dict__", None)
        if not isinstance(attributes, dict) or not any(
            isinstance(item, nn.Module) for item in attributes.values()
        ):
            return value
        new = copy.copy(value)
        self.seen[id(value)] = new
        new.__dict__.update({key: self.value(item, f"{path}.{key}") for key, item in attributes.items()})
        return new
