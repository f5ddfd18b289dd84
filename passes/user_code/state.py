"""What a model keeps between calls."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from passes.user_code.reach import MOST, is_proxy, next_of

_PLAIN = (bool, int, float, str, type(None))


class _Mark:
    """Stands for an object: itself, and how often it was written to if it is a tensor."""

    def __init__(self, value: Any) -> None:
        # Held, so that no other object gets its address.
        self.value = value
        # What is referred to weakly may be gone: its class must not be asked for.
        tensor = not is_proxy(value) and isinstance(value, Tensor)
        self.version = value._version if tensor and not value.is_inference() else 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Mark) and self.value is other.value and self.version == other.version

    __hash__ = None  # type: ignore[assignment]  # two marks are compared, not looked up


def fingerprint(value: Any) -> list[Any]:
    """Return what changes when anything is assigned in ``value``, however deep, or a tensor is written to.

    Example:
        >>> state = {"h": [None]}
        >>> before = fingerprint(state)
        >>> state["h"][0] = 1
        >>> fingerprint(state) == before
        False

    """
    seen: set[int] = set()
    marks: list[Any] = []
    pending = [value]
    while pending and len(seen) < MOST:
        each = pending.pop()
        marks.append(each if type(each) in _PLAIN else _Mark(each))
        if id(each) in seen or is_proxy(each) or isinstance(each, nn.Module):
            continue
        seen.add(id(each))
        if isinstance(each, dict):
            marks.extend(_Mark(key) for key in each)
        pending.extend(next_of(each))
    return marks


def state_of(model: nn.Module) -> dict[tuple[str, str], list[Any]]:
    """Return what tells whether anything was assigned in a model's attributes or written to its tensors.

    Returns:
        A fingerprint of each attribute, by the names of its module and its own.

    Example:
        >>> model = nn.BatchNorm1d(1)
        >>> before = state_of(model)
        >>> _ = model.running_mean.add_(1)
        >>> [place for place, value in state_of(model).items() if before[place] != value]
        [('', '_buffers')]

    """
    return {
        (name, key): fingerprint(value)
        for name, module in model.named_modules()
        for key, value in module.__dict__.items()
    }
