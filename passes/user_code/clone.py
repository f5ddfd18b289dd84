"""Copy the structure of a model while sharing its tensors."""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import deque
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from passes.user_code.reach import attributes_of, reaches_module

M = TypeVar("M", bound=nn.Module)


def clone_structure(model: M) -> M:
    """Return a model of fresh modules that hold the very same parameters and buffers.

    Modules that are registered twice, or that containers, helper objects, closures, bound methods and
    hooks refer to, are followed, so that nothing in the clone leads back into the original. Scripted
    modules cannot be taken apart and stay shared.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> clone = clone_structure(model)
        >>> clone[0] is model[0], clone[0].weight is model[0].weight
        (False, True)

    """
    return named_clones(model)[0]


def frozen_clone(model: M) -> M:
    """Clone as :func:`clone_structure` does, with parameters that share storage and get no gradients.

    Without gradients of parameters, autograd keeps nothing for them.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> clone = frozen_clone(model)
        >>> clone.weight.data_ptr() == model.weight.data_ptr(), clone.weight.requires_grad
        (True, False)

    """
    clone = clone_structure(model)
    for module in clone.modules():
        if isinstance(module, torch.jit.ScriptModule):
            # It is the original's, which cannot be cloned.
            continue
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach(), requires_grad=False)
    return clone


def own_tensors(clone: nn.Module) -> None:
    """Give a clone copies of its buffers and of tensors among its attributes, which its forward may change.

    Example:
        >>> clone = clone_structure(nn.BatchNorm1d(2))
        >>> before = clone.running_mean
        >>> own_tensors(clone)
        >>> clone.running_mean is before
        False

    """
    own: dict[int, Tensor] = {}
    for module in clone.modules():
        if isinstance(module, torch.jit.ScriptModule):
            # It is the original's, which cannot be cloned.
            continue
        for holder in (module._buffers, module.__dict__):
            for key, value in holder.items():
                if isinstance(value, Tensor):
                    holder[key] = own.setdefault(id(value), value.detach().clone())


def private_clone(model: M) -> M:
    """Clone as :func:`clone_structure` does, and copy the plain objects that the modules hold.

    Example:
        >>> model = nn.Identity()
        >>> model.log = [1]
        >>> clone = private_clone(model)
        >>> clone.log.append(2)
        >>> model.log
        [1]

    """
    clone: M = _Cloner(private=True).module(model, "")
    return clone


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
    clone: M = cloner.module(model, "")
    registered = {id(module): name for name, module in model.named_modules()}
    found: dict[str, nn.Module] = {}
    for original, path in cloner.paths.items():
        name = registered.get(original, path)
        found[".".join(part for part in name.split(".") if part != "_orig_mod")] = cloner.seen[original]
    return clone, found


_SHARED = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, weakref.ref)


class LateMethod:
    """A bound method that is looked up when it is called, because its owner may change its class.

    Args:
        owner: the module.
        name: the method's name.

    """

    def __init__(self, owner: nn.Module, name: str) -> None:
        self.owner = owner
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call what the owner's class says now."""
        return getattr(self.owner, self.name)(*args, **kwargs)


class _Cloner:
    def __init__(self, *, private: bool = False) -> None:
        self.private = private
        self.seen: dict[int, Any] = {}
        self.paths: dict[int, str] = {}

    def module(self, module: Any, path: str) -> Any:
        """Clone one module; compiled modules give way to what they were compiled from."""
        if id(module) in self.seen:
            return self.seen[id(module)]
        if isinstance(module, torch.jit.ScriptModule):
            for name, part in module.named_modules():
                self.seen[id(part)] = part
                self.paths[id(part)] = ".".join(filter(None, (path, name)))
            return module
        # Not by getattr: a wrapper may pass every attribute of what it wraps on.
        inner = module._modules.get("_orig_mod")
        if inner is not None:
            return self.module(inner, path)
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
        """Map one attribute; what reaches no module is shared, unless everything is to be private."""
        if isinstance(value, nn.Module):
            return self.module(value, path)
        if value is None or isinstance(value, str | int | float | Tensor | type):
            return value
        if id(value) in self.seen:
            return self.seen[id(value)]
        if isinstance(value, torch.Generator):
            return value.clone_state() if self.private else value
        if isinstance(value, list | dict | set | deque):
            return self.container(value, path)
        if isinstance(value, tuple | frozenset):
            items = [self.value(item, f"{path}[{k}]") for k, item in enumerate(value)]
            return value._make(items) if hasattr(value, "_make") else type(value)(items)
        if not reaches_module(value):
            return self.own(value) if self.private else value
        return self.reference(value, path)

    def container(self, value: Any, path: str) -> Any:
        new = copy.copy(value)
        self.seen[id(value)] = new
        if isinstance(value, dict):
            for key, item in value.items():
                new[key] = self.value(item, ".".join(filter(None, (path, str(key)))))
            return new
        items = [self.value(item, f"{path}[{k}]") for k, item in enumerate(value)]
        new.clear()
        (new.update if isinstance(value, set) else new.extend)(items)
        return new

    def reference(self, value: Any, path: str) -> Any:
        """Map what leads to a module without being a container."""
        if isinstance(value, types.MethodType):
            owner = self.value(value.__self__, path)
            if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
                return LateMethod(owner, value.__name__)
            return types.MethodType(value.__func__, owner)
        if isinstance(value, functools.partial):
            arguments = [self.value(item, path) for item in value.args]
            keywords = {key: self.value(item, path) for key, item in value.keywords.items()}
            return functools.partial(self.value(value.func, path), *arguments, **keywords)
        if isinstance(value, types.FunctionType):
            return self.function(value, path)
        if isinstance(value, weakref.ref):
            return weakref.ref(self.value(value(), path))
        new = copy.copy(value)
        self.seen[id(value)] = new
        for key, item in attributes_of(value).items():
            object.__setattr__(new, key, self.value(item, f"{path}.{key}"))
        return new

    def function(self, function: types.FunctionType, path: str) -> types.FunctionType:
        """Rebuild a function around the clones of what it closes over."""
        cells = tuple(self.cell(cell, path) for cell in function.__closure__ or ())
        defaults = function.__defaults__ and self.value(function.__defaults__, path)
        new = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, defaults, cells or None
        )
        new.__kwdefaults__ = function.__kwdefaults__
        new.__dict__.update(function.__dict__)
        self.seen[id(function)] = new
        return new

    def cell(self, cell: types.CellType, path: str) -> types.CellType:
        try:
            contents = cell.cell_contents
        except ValueError:  # a name that is not bound yet
            return cell
        return types.CellType(self.value(contents, path))

    def own(self, value: Any) -> Any:
        """Copy an object that user code may write to; what cannot be copied stays shared."""
        if isinstance(value, _SHARED):
            return value
        try:
            new = copy.deepcopy(value)
        except Exception:
            return value
        self.seen[id(value)] = new
        return new
