"""How a function, a method or an operator shows what it is called."""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Mapping
from types import FunctionType, MethodType
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.utils import rnn

# Where torch's functions are found that are written in Python.
_SPACES = (torch, F, torch.Tensor, rnn)
# Of whose modules the functions in C are known: a user may hand any other to torch.fx.wrap.
_LIBRARIES = ("torch", "passes", "operator", "_operator", "builtins")
# Methods that Python calls to make a number of a tensor; a tensor has methods of nearly the same names.
_NUMBERS = {"__float__": "float_", "__int__": "int", "__index__": "index_", "__complex__": "complex_"}


def _in_place_operators() -> dict[str, str]:
    """Return what ``operator.iadd`` and its kind compute out of place, by their names."""
    found = {}
    for name in vars(operator):
        plain = next((each for each in (name[1:], f"{name[1:]}_") if hasattr(operator, each)), None)
        # Sequences have one of their own.
        if name.startswith("i") and hasattr(operator, f"__{name}__") and plain and name != "iconcat":
            found[name] = plain
    return found


#: Names of the operators that write in place, with those of what computes the same out of place.
IN_PLACE: Mapping[str, str] = _in_place_operators()


def name_of_call(function: Any) -> str:
    """Return what a function or method is called in a report.

    Example:
        >>> name_of_call(torch.relu), name_of_call(torch.Tensor.T.__get__), name_of_call("tanh")
        ('relu', 'T', 'tanh')
        >>> name_of_call(torch.ops.aten.mul.Tensor)
        'mul'

    """
    if isinstance(function, str):
        return function
    operator_name = _aten_name(function)
    if operator_name:
        return operator_name
    name = str(getattr(function, "__name__", None) or type(function).__name__)
    owner = getattr(function, "__self__", None)
    if name in ("__get__", "__set__") and owner is not None:
        return str(getattr(owner, "__name__", name))
    return name.strip("_") if name.startswith("__") else name


def key_of(function: Any) -> str | None:
    """Return the name under which an operation is known, None for what is neither torch's nor Python's.

    What marks a method of Python's, an operator, or a form that writes in place is taken off. A function
    of torch's that is not the documented one of its name has its module before it.

    Example:
        >>> key_of(torch.Tensor.__rsub__), key_of("mul_"), key_of(operator.iadd), key_of(operator.and_)
        ('rsub', 'mul', 'add', 'and')
        >>> import textwrap
        >>> key_of(textwrap.dedent) is None
        True

    """
    if not isinstance(function, str) and _library_of(function) not in _LIBRARIES:
        return None
    if _aten_name(function) == "":
        return None
    if isinstance(function, FunctionType | MethodType) and not _is_known(function):
        # Such as those of torch.masked, which take other arguments than their namesakes.
        return f"{function.__module__}.{function.__name__}"
    name = _NUMBERS.get(getattr(function, "__name__", "")) or name_of_call(function)
    if name in _NUMBERS.values():
        return name
    plain = name.strip("_") if name.startswith("__") else name.rstrip("_")
    return IN_PLACE.get(plain, plain).rstrip("_")


def _library_of(function: Any) -> str:
    """Return the package that has a function, type or object; that of a method is Python's or torch's."""
    module = getattr(function, "__module__", None)
    return module.partition(".")[0] if isinstance(module, str) else "builtins"


def _is_known(function: FunctionType | MethodType) -> bool:
    """Whether a function in Python is what torch, or this package, has by its name."""
    name = function.__name__
    spaces = [sys.modules.get(function.__module__)] if _library_of(function) == "passes" else _SPACES
    return any(getattr(space, each, None) is function for space in spaces for each in (name, f"__{name}__"))


def in_place_name(function: Any) -> str | None:
    """Return what a form that writes in place is called out of place, None for what is no such form.

    Example:
        >>> in_place_name(torch.relu_), in_place_name("__iadd__"), in_place_name("__add__")
        ('relu', 'add', None)

    """
    name = _aten_name(function) or (function if isinstance(function, str) else None)
    name = name or str(getattr(function, "__name__", ""))
    plain = name.strip("_") if name.startswith("__") else name
    if plain in ("setitem", "set_item"):
        return "setitem"
    if plain in IN_PLACE and (name != plain or getattr(operator, plain) is function):
        return IN_PLACE[plain]
    return plain[:-1] if plain.endswith("_") and name == plain and len(plain) > 1 else None


@functools.cache
def is_pointwise(function: Any) -> bool:
    """Whether each number of the result depends on the numbers in the same place only, as torch's tags say.

    Example:
        >>> is_pointwise(operator.add), is_pointwise("mul_"), is_pointwise(torch.cumsum)
        (True, True, False)

    """
    packet = getattr(torch.ops.aten, key_of(function) or "", None)
    overloads = [] if packet is None else [getattr(packet, each) for each in packet.overloads()]
    return any(torch.Tag.pointwise in each.tags for each in overloads)


def _aten_name(function: Any) -> str | None:
    """Return what an operator of ``torch.ops.aten`` is called, ``""`` for one of another library."""
    schema = getattr(function, "_schema", None)
    if schema is None:
        return None
    space, _, name = str(schema.name).partition("::")
    return name if space == "aten" else ""
