"""Whether a model is as it was found: what is set in it, hooked to it, and what its code reads elsewhere."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from passes.user_code.surroundings import places_outside, values_at

Snapshot = dict[str, tuple[Any, Any]]


class Found:
    """The attributes of all modules of a model, and what their lists, sets and dictionaries held.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> found = Found(model)
        >>> model.x = 1
        >>> found.is_as(model)
        False
        >>> found.restore()
        >>> found.is_as(model), hasattr(model, "x")
        (True, False)

    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(module, _snapshot(module)) for module in model.modules()]

    def restore(self) -> None:
        """Make the modules what they were."""
        for module, found in self._modules:
            _restore(module, found)

    def is_as(self, model: nn.Module) -> bool:
        """Whether a model is this one, and nobody set an attribute since."""
        modules = list(model.modules())
        return len(modules) == len(self._modules) and all(
            module is known and _is_same(module, found)
            for module, (known, found) in zip(modules, self._modules, strict=True)
        )


def _snapshot(module: nn.Module) -> Snapshot:
    return {
        key: (value, copy.copy(value) if isinstance(value, dict | list | set) else None)
        for key, value in module.__dict__.items()
    }


def _is_same(module: nn.Module, found: Snapshot) -> bool:
    state = module.__dict__
    return state.keys() == found.keys() and all(
        state[key] is value and (content is None or _same_items(value, content))
        for key, (value, content) in found.items()
    )


def _restore(module: nn.Module, found: Snapshot) -> None:
    """Put contents back into the same containers: hook handles refer to them."""
    state = module.__dict__
    for key in state.keys() - found.keys():
        del state[key]
    for key, (value, content) in found.items():
        state[key] = value
        if content is not None and not _same_items(value, content):
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(content)


def _same_items(a: Any, b: Any) -> bool:
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return bool(a.keys() == b.keys()) and all(a[key] is b[key] for key in a)
    return all(x is y for x, y in zip(a, b, strict=True))


class Since:
    """Tells whether anything that a model goes by, but the numbers in its weights, is as it was.

    Args:
        model: the model.

    Example:
        >>> layer = nn.Dropout(0.1)
        >>> since = Since(layer)
        >>> layer.p = 0.2
        >>> since.is_same()
        False

    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._found: Found | None = Found(model)
        self._outside = places_outside({type(each) for each in model.modules()})
        self._values = values_at(self._outside)

    def is_same(self) -> bool:
        """Whether nothing was set, put in, or hooked to the model, or changed in its files, since."""
        if self._found is None:
            return False
        return self._found.is_as(self._model) and values_at(self._outside) == self._values

    def __getstate__(self) -> dict[str, Any]:
        """Know nothing in a copy: that is of another model."""
        return {"_model": self._model, "_found": None}
