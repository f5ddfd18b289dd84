"""What is hooked to a module, and other forwards, modes and applications of Functions for a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn
from torch.autograd.function import _SingleLevelFunction

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_MISSING = object()


class OwnHook:
    """A hook of ours, which is no part of what a model computes; copies that we make do not have it.

    Example:
        >>> import pickle
        >>> pickle.loads(pickle.dumps(OwnHook()))(nn.Tanh(), (), {})

    """

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Do nothing, as what is loaded from a pickle does."""

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnHook, ()


def has_hooks(module: nn.Module) -> bool:
    """Whether anything but our own is hooked to the module's forward or backward.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> handle = layer.register_forward_hook(lambda *_: None)
        >>> has_hooks(layer), has_hooks(nn.Linear(1, 1))
        (True, False)

    """
    hooks = (getattr(module, name, None) or {} for name in _HOOKS)
    return any(not isinstance(hook, OwnHook) for each in hooks for hook in each.values())


#: What is hooked to the modules of a model, by their names and the kind of hook; other forwards, too.
Hooks = dict[tuple[str, str], frozenset[int]]


def hooks_of(model: nn.Module) -> Hooks:
    """Return the keys of all hooks but our own; of a forward of its own that a module has, none.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> handle = layer.register_forward_hook(lambda *_: None)
        >>> hooks_of(layer) == {("", "_forward_hooks"): {handle.id}}
        True

    """
    found: Hooks = {}
    for name, module in model.named_modules():
        for kind in _HOOKS:
            hooks = getattr(module, kind, None) or {}
            keys = frozenset(key for key, hook in hooks.items() if not isinstance(hook, OwnHook))
            if keys:
                found[name, kind] = keys
        if "forward" in module.__dict__:
            found[name, "forward"] = frozenset()
    return found


def take_out_hooks(model: nn.Module, known: Hooks) -> None:
    """Take all hooks, and forwards of their own, out of a copy that is ours, but those that are known.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> handle = layer.register_forward_hook(lambda *_: None)
        >>> take_out_hooks(layer, {})
        >>> has_hooks(layer)
        False

    """
    for (name, kind), keys in hooks_of(model).items():
        module = model.get_submodule(name)
        if kind == "forward":
            if (name, kind) not in known:
                object.__delattr__(module, "forward")
            continue
        hooks = getattr(module, kind)
        for key in keys - known.get((name, kind), frozenset()):
            del hooks[key]


def set_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Give a module of a copy that is ours another forward, for good.

    Example:
        >>> import torch
        >>> module = nn.Identity()
        >>> set_forward(module, torch.neg)
        >>> module(torch.ones(1))
        tensor([-1.])

    """
    # Past the module's own, which a user's class may have replaced.
    object.__setattr__(module, "forward", forward)


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Leave each module in the mode, training or evaluation, in which it was found.

    Example:
        >>> layer = nn.Dropout()
        >>> with modes_kept(layer):
        ...     layer.eval().training
        False
        >>> layer.training
        True

    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            if module.training != training:
                module.training = training


@contextmanager
def replaced_forwards(forwards: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Give modules other forwards, for a time.

    Example:
        >>> import torch
        >>> module = nn.Identity()
        >>> with replaced_forwards([(module, torch.neg)]):
        ...     module(torch.ones(1))
        tensor([-1.])
        >>> module(torch.ones(1))
        tensor([1.])

    """
    before = []
    try:
        for module, forward in forwards:
            before.append((module, module.__dict__.get("forward", _MISSING)))
            set_forward(module, forward)
        yield
    finally:
        for module, own in reversed(before):
            object.__delattr__(module, "forward")
            if own is not _MISSING:
                set_forward(module, own)


#: Takes a ``torch.autograd.Function``, what applies it, and its arguments, and returns its result.
Apply = Callable[[Any, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
_applying: ContextVar[tuple[Apply, ...]] = ContextVar("passes_applying", default=())
# Their Functions are parts of operations that are seen as such.
_LIBRARIES = ("torch", "passes", "rewriter")
_lock = threading.Lock()
_threads = 0


@contextmanager
def applied_by(apply: Apply) -> Iterator[None]:
    """Have ``apply`` asked to apply each ``torch.autograd.Function`` of the user's in this thread.

    Torch shows no call of them to a mode. Their ``apply``, which code may hold on to, looks a method up in a
    base class that has none of its own.

    Example:
        >>> import torch
        >>> class Double(torch.autograd.Function):
        ...     __module__ = "a_users_module"
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         return 2 * x
        >>> double = Double.apply
        >>> def told(function, plain, args, kwargs):
        ...     print(function.__name__)
        ...     return plain(*args, **kwargs)
        >>> with applied_by(told):
        ...     double(torch.ones(1))
        Double
        tensor([2.])

    """
    global _threads
    with _lock:
        _threads += 1
        _SingleLevelFunction.apply = _APPLY  # type: ignore[attr-defined]
    token = _applying.set((*_applying.get(), apply))
    try:
        yield
    finally:
        _applying.reset(token)
        with _lock:
            _threads -= 1
            if not _threads:
                del _SingleLevelFunction.apply  # type: ignore[attr-defined]


def _apply(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply a Function by the innermost of those who are to be asked, who asks the next."""
    own = str(function.__module__).partition(".")[0] in _LIBRARIES
    return _asked(function, () if own else _applying.get(), args, kwargs)


def _asked(function: Any, left: tuple[Apply, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not left:
        return super(_SingleLevelFunction, function).apply(*args, **kwargs)
    *others, innermost = left

    def plain(*args: Any, **kwargs: Any) -> Any:
        return _asked(function, tuple(others), args, kwargs)

    return innermost(function, plain, args, kwargs)


_APPLY = classmethod(_apply)
