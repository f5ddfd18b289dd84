"""Find out what a plain Python object leads to."""

from __future__ import annotations

import functools
import types
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

#: More objects than a helper of a model consists of; a data set may have millions.
MOST = 10_000


#: A function that yields calls of its kind, in the place of making them, and is sent what they return.
Steps = Generator[Any, Any, Any]


def without_recursion(steps: Steps) -> Any:
    """Return what such a function returns, however deep its calls go.

    Example:
        >>> def depth(value):
        ...     return 0 if value is None else 1 + (yield depth(value[0]))
        >>> chain = None
        >>> for _ in range(5000):
        ...     chain = (chain,)
        >>> without_recursion(depth(chain))
        5000

    """
    stack, result, error = [steps], None, None
    while stack:
        try:
            call = stack[-1].send(result) if error is None else stack[-1].throw(error)
        except StopIteration as done:
            stack.pop()
            result, error = done.value, None
        except Exception as raised:
            stack.pop()
            result, error = None, raised
        else:
            stack.append(call)
            result, error = None, None
    if error is not None:
        raise error
    return result


class Unchanging:
    """What copies of a model share, because nothing that it leads to ever changes.

    Example:
        >>> import copy
        >>> one = Unchanging()
        >>> copy.deepcopy(one) is one
        True

    """

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def reaches_module(value: Any) -> bool:
    """Whether a module can be reached through containers, attributes, closures and references.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> reaches_module({"deep": [functools.partial(layer.forward)]}), reaches_module([1, "a"])
        (True, False)

    """
    # A proxy of what is gone must not be asked for its class.
    return any(not is_proxy(each) and isinstance(each, nn.Module) for each in reached(value))


def reached(value: Any) -> Iterator[Any]:
    """Yield an object and what it leads to, each once; not what modules hold, and no more than ``MOST``.

    Example:
        >>> list(reached([1, ("a",)]))
        [[1, ('a',)], ('a',), 'a', 1]

    """
    seen: set[int] = set()
    pending = [value]
    while pending and len(seen) < MOST:
        each = pending.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            if is_proxy(each) or not isinstance(each, nn.Module):
                pending.extend(next_of(each))


def is_proxy(value: Any) -> bool:
    """Whether a value is a weak proxy, which answers isinstance as what it refers to.

    Example:
        >>> layer = nn.Tanh()
        >>> is_proxy(weakref.proxy(layer)), isinstance(weakref.proxy(layer), nn.Tanh)
        (True, True)

    """
    return type(value) in weakref.ProxyTypes


def referent(proxy: Any) -> Any:
    """Return what a weak proxy refers to, None if that is gone.

    Example:
        >>> layer = nn.Tanh()
        >>> referent(weakref.proxy(layer)) is layer
        True

    """
    try:
        # A method is bound to the object itself.
        return getattr(proxy.__init__, "__self__", None)
    except ReferenceError:
        return None


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the attributes in an object's ``__dict__`` and slots."""
    found = dict(getattr(value, "__dict__", None) or {})
    for cls in type(value).__mro__:
        names = cls.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                found[name] = getattr(value, name)
    return found


def next_of(value: Any) -> Iterable[Any]:
    """Return the objects that a plain object holds: items, attributes, what a function closes over."""
    if is_proxy(value):
        return (referent(value),)
    if isinstance(
        value, str | bytes | int | float | Tensor | type | types.ModuleType | torch.dtype | Unchanging
    ):
        return ()
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset | deque):
        return value
    if isinstance(value, types.MethodType):
        return (value.__self__,)
    if isinstance(value, functools.partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, types.FunctionType):
        return (*_cells(value), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
    if isinstance(value, weakref.ref):
        return (value(),)
    return attributes_of(value).values()


def _cells(function: types.FunctionType) -> list[Any]:
    contents = []
    for cell in function.__closure__ or ():
        try:
            contents.append(cell.cell_contents)
        except ValueError:  # a name that is not bound yet
            contents.append(None)
    return contents
