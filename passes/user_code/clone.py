"""Copy the structure of a model while sharing its tensors."""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from passes.user_code.hooks import OwnHook
from passes.user_code.reach import (
    MOST,
    Steps,
    attributes_of,
    is_proxy,
    next_of,
    reached,
    referent,
    without_recursion,
)
from passes.user_code.tensors import TensorCopies

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


def private_clone(model: M, tensor: Callable[[Tensor], Tensor] | None = None) -> M:
    """Clone as :func:`clone_structure` does, and copy what the modules hold, as deep as it lies.

    Args:
        model: the model.
        tensor: makes the copy of each tensor; without it parameters are shared and all others copied.

    Example:
        >>> model = nn.BatchNorm1d(1)
        >>> model.log = {"calls": [torch.zeros(1)]}
        >>> clone = private_clone(model)
        >>> clone.log["calls"][0].add_(2)
        tensor([2.])
        >>> model.log, clone.weight is model.weight, clone.running_mean is model.running_mean
        ({'calls': [tensor([0.])]}, True, False)

    """
    clone: M = without_recursion(_Cloner(tensor or _all_but_parameters()).module(model, ""))
    return clone


def private_copy(value: Any) -> Any:
    """Copy containers, objects and tensors, however deep they lie.

    Example:
        >>> value = [torch.zeros(1)]
        >>> private_copy(value)[0].add_(1), value
        (tensor([1.]), [tensor([0.])])

    """
    return without_recursion(_Cloner(TensorCopies()).value(value, ""))


def _all_but_parameters() -> Callable[[Tensor], Tensor]:
    copies = TensorCopies()
    return lambda tensor: tensor if isinstance(tensor, nn.Parameter) else copies(tensor)


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
    clone: M = without_recursion(cloner.module(model, ""))
    registered = {id(module): name for name, module in model.named_modules()}
    found: dict[str, nn.Module] = {}
    for original, path in cloner.paths.items():
        name = registered.get(original, path)
        found[".".join(part for part in name.split(".") if part != "_orig_mod")] = cloner.seen[original]
    return clone, found


_SHARED = (types.ModuleType, types.BuiltinFunctionType, weakref.ref, *weakref.ProxyTypes)


def _may_hold(value: Any) -> bool:
    """Whether a function closes over, or a method belongs to, something that code may write to."""
    return any(not isinstance(each, _UNCHANGING) for each in reached(value) if each is not value)


_PLAIN = (type(None), bool, int, float, str)
_NUMBERS = frozenset(_PLAIN)


def _are_plain(values: Any) -> bool:
    """Whether all items are numbers, text or None, of which there may be many."""
    return _NUMBERS.issuperset(map(type, values))


_CONTAINERS = (dict, OrderedDict, list, set)
_UNCHANGING = (type(None), bool, int, float, str, type, types.FunctionType, types.ModuleType)


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


def is_compiled(model: object) -> bool:
    """Whether torch.compile wrapped a model, by its class: an attribute may have the name by chance.

    Example:
        >>> is_compiled(nn.Tanh())
        False

    """
    kind: Any = getattr(sys.modules.get("torch._dynamo"), "OptimizedModule", None)
    return kind is not None and issubclass(type(model), kind)


class _Cloner:
    """Clones modules, and what they hold.

    Args:
        tensor: makes the copy of each tensor, where everything is to be copied; None to share what leads
            to no module.

    """

    def __init__(self, tensor: Callable[[Tensor], Tensor] | None = None) -> None:
        self.tensor = tensor
        # What only proxies refer to is held, too.
        self.proxied: list[nn.Module] = []
        self.seen: dict[int, Any] = {}
        self.paths: dict[int, str] = {}
        # What is known to lead to no module, and to one; whether something was too deep for copy.deepcopy.
        self.alone: set[int] = set()
        self.leading: set[int] = set()
        self.deep = False

    def reaches_module(self, value: Any) -> bool:
        """Whether a module can be reached; what was walked through is known afterwards."""
        holders: dict[int, list[int]] = {}
        ends, seen, pending = list[int](), set[int](), [value]
        while pending and len(seen) < MOST:
            each = pending.pop()
            if id(each) in seen or id(each) in self.alone:
                continue
            seen.add(id(each))
            if id(each) in self.leading or (not is_proxy(each) and isinstance(each, nn.Module)):
                ends.append(id(each))
                continue
            for part in next_of(each):
                holders.setdefault(id(part), []).append(id(each))
                pending.append(part)
        while ends:
            end = ends.pop()
            # Each once.
            ends += holders.pop(end, ())
            self.leading.add(end)
        if not pending:
            self.alone |= seen - self.leading
        return id(value) in self.leading

    def module(self, module: Any, path: str) -> Steps:
        """Clone one module; compiled modules give way to what they were compiled from."""
        if id(module) in self.seen:
            return self.seen[id(module)]
        if isinstance(module, torch.jit.ScriptModule):
            return self.scripted(module, path)
        if is_compiled(module):
            return (yield self.module(module._modules["_orig_mod"], path))
        self.paths[id(module)] = path
        kind: type[nn.Module] = type(module)
        new: Any = kind.__new__(kind)
        self.seen[id(module)] = new
        state = {}
        for key, value in module.__dict__.items():
            if type(value) in _PLAIN:
                state[key] = value
            elif key != "_graph":
                below = "" if key in ("_modules", "_parameters", "_buffers") else key
                state[key] = yield self.value(value, f"{path}.{below}" if path and below else path or below)
        # A compiled forward would run the original.
        state.pop("_compiled_call_impl", None)
        state.pop("_before_call", None)
        new.__dict__.update(state)
        if isinstance(module, fx.GraphModule):
            # The setter compiles the code; a graph belongs to one module only.
            new.graph = copy.deepcopy(module.graph)
        return new

    def scripted(self, module: torch.jit.ScriptModule, path: str) -> torch.jit.ScriptModule:
        """Copy as a whole, or share, what cannot be taken apart."""
        whole = module if self.tensor is None else copy.deepcopy(module)
        for (name, part), own in zip(module.named_modules(), whole.modules(), strict=True):
            self.seen[id(part)] = own
            self.paths[id(part)] = ".".join(filter(None, (path, name)))
        return whole

    def value(self, value: Any, path: str) -> Steps:
        """Map one attribute; what reaches no module is shared, unless everything is to be private."""
        if is_proxy(value):
            return (yield self.proxy(value, path))
        if isinstance(value, nn.Module):
            return (yield self.module(value, path))
        if isinstance(value, Tensor):
            return value if self.tensor is None else self.tensor(value)
        if value is None or isinstance(value, str | int | float | type):
            return value
        if id(value) in self.seen:
            return self.seen[id(value)]
        if isinstance(value, torch.Generator):
            return value if self.tensor is None else value.clone_state()
        if isinstance(value, list | dict | set | deque):
            return (yield self.container(value, path))
        if isinstance(value, tuple | frozenset):
            if _are_plain(value):
                return value
            items = yield self.items(value, path)
            return value._make(items) if hasattr(value, "_make") else type(value)(items)
        if not self.reaches_module(value):
            return value if self.tensor is None else (yield self.own(value))
        try:
            return (yield self.reference(value, path))
        except Exception:
            # A file or a lock of something that hangs on the model, a trainer say, and is no part of it.
            self.seen[id(value)] = value
            return value

    def items(self, values: Any, path: str) -> Steps:
        """Map each of many."""
        found = []
        for k, item in enumerate(values):
            found.append((yield self.value(item, f"{path}[{k}]")))
        return found

    def proxy(self, value: Any, path: str) -> Steps:
        """Map a weak proxy of a module of the model to one of its clone; others stay as they are."""
        target = referent(value)
        if not isinstance(target, nn.Module):
            return value
        self.proxied.append((yield self.value(target, path)))
        return weakref.proxy(self.proxied[-1])

    def container(self, value: Any, path: str) -> Steps:
        # A module has ten that are empty, and copy.copy takes long for one.
        # A class of its own may tell others what is put in: the items go in by the methods of what it is.
        base: Any = next(each for each in (OrderedDict, dict, list, set, deque) if isinstance(value, each))
        if base in (list, set) or (not value and type(value) in _CONTAINERS):
            new = base.__new__(type(value))
        else:
            new = copy.copy(value)
        self.seen[id(value)] = new
        if getattr(value, "__dict__", None):
            held = yield self.items(value.__dict__.values(), path)
            new.__dict__.update(zip(value.__dict__, held, strict=True))
        if isinstance(value, dict):
            for key, item in value.items():
                if isinstance(item, OwnHook):
                    base.__delitem__(new, key)
                    continue
                own = yield self.value(item, ".".join(filter(None, (path, str(key)))))
                base.__setitem__(new, key, own)
            return new
        items = list(value) if _are_plain(value) else (yield self.items(value, path))
        base.clear(new)
        (base.update if base is set else base.extend)(new, items)
        return new

    def reference(self, value: Any, path: str) -> Steps:
        """Map what leads to a module without being a container."""
        if isinstance(value, types.MethodType):
            owner = yield self.value(value.__self__, path)
            late = isinstance(owner, nn.RNNBase | nn.RNNCellBase)
            # What the instance has in the method's place may be what calls it.
            if late and value.__name__ not in vars(value.__self__):
                return LateMethod(owner, value.__name__)
            return types.MethodType(value.__func__, owner)
        if isinstance(value, functools.partial):
            function, *arguments = yield self.items((value.func, *value.args), path)
            keywords = yield self.items(value.keywords.values(), path)
            return functools.partial(function, *arguments, **dict(zip(value.keywords, keywords, strict=True)))
        if isinstance(value, types.FunctionType):
            return (yield self.function(value, path))
        if isinstance(value, weakref.ref):
            return weakref.ref((yield self.value(value(), path)))
        new = copy.copy(value)
        self.seen[id(value)] = new
        for key, item in attributes_of(value).items():
            object.__setattr__(new, key, (yield self.value(item, f"{path}.{key}")))
        return new

    def function(self, function: types.FunctionType, path: str) -> Steps:
        """Rebuild a function around the clones of what it closes over."""
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        new = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, None, cells or None
        )
        # Before its cells are filled, in which it may lie itself.
        self.seen[id(function)] = new
        for cell, own in zip(function.__closure__ or (), cells, strict=True):
            # A name that is not bound yet has no contents.
            with contextlib.suppress(ValueError):
                own.cell_contents = yield self.value(cell.cell_contents, path)
        new.__defaults__ = function.__defaults__ and (yield self.value(function.__defaults__, path))
        new.__kwdefaults__ = function.__kwdefaults__ and (yield self.value(function.__kwdefaults__, path))
        new.__dict__.update(function.__dict__)
        return new

    def own(self, value: Any) -> Steps:
        """Copy an object that user code may write to; what cannot be copied stays shared."""
        if isinstance(value, types.FunctionType | types.MethodType | functools.partial):
            return (yield self.reference(value, "")) if _may_hold(value) else value
        if isinstance(value, _SHARED):
            return value
        if self.deep:
            return (yield self.parts_of(value))
        assert self.tensor is not None
        memo = {id(each): self.tensor(each) for each in reached(value) if isinstance(each, Tensor)}
        try:
            new = copy.deepcopy(value, memo)
        except Exception as error:
            self.deep = isinstance(error, RecursionError)
            return (yield self.parts_of(value))
        self.seen[id(value)] = new
        return new

    def parts_of(self, value: Any) -> Steps:
        """Copy the attributes of an object, of which one cannot be copied: a file, a lock."""
        if not attributes_of(value):
            return value
        try:
            return (yield self.reference(value, ""))
        except Exception:
            return value
