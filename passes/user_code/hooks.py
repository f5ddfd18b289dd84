"""What is hooked to a module, and other forwards for a time."""

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


def has_hooks(module: nn.Module) -> bool:
    """Whether anything is hooked to the module's forward or backward.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> handle = layer.register_forward_hook(lambda *_: None)
        >>> has_hooks(layer), has_hooks(nn.Linear(1, 1))
        (True, False)

    """
    return any(getattr(module, name, None) for name in _HOOKS)


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
            object.__setattr__(module, "forward", forward)
        yield
    finally:
        for module, own in reversed(before):
            object.__delattr__(module, "forward")
            if own is not _MISSING:
                object.__setattr__(module, "forward", own)
