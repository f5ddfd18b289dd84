"""What is hooked to a module, and other forwards and modes for a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

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
