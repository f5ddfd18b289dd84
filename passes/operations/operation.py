"""What is known of one operation of torch: its names, its parameters, and in what it is linear."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from types import MappingProxyType
from typing import Any, cast

import torch
from torch.nn import functional as F

from passes.operations.contract import Lowering

# Why an operation is not linear.
NO_RULE = "has no rule"
FIXED = "a mask, index or number that depends on the input"
CUTS = "cuts the gradient"
RANDOM = "draws random numbers"
ROWS = "mixes rows of the batch (batch statistics)"
PRODUCT = "a product of operands that depend on the input"
DIVISOR = "divides by what depends on the input"

_NOTHING: Mapping[str, str] = MappingProxyType({})


class Kind(Enum):
    """What an operation does to numbers."""

    #: Linear in all that varies among its tensors together, but for :attr:`Operation.fixed`.
    LINEAR = "linear"
    #: Linear in each of its :attr:`Operation.factors`, of which more than one may vary.
    PRODUCT = "product"
    NONLINEAR = "nonlinear"
    #: True or false, or a place: it has no slope.
    DISCRETE = "discrete"
    #: Says something of the shape, type or device of a tensor.
    SHAPE = "shape"
    #: Makes a tensor of sizes; a number that it takes from another tensor has lost its gradient.
    BLANK = "blank"
    #: Draws random numbers.
    RANDOM = "random"
    #: Hands numbers on without their gradient.
    CUT = "cut"
    #: A recurrent kernel of torch's.
    KERNEL = "kernel"


@dataclass(frozen=True)
class Operation:
    """One operation, however it is called: as a function, method, operator, in place, by ``torch.ops.aten``.

    Args:
        name: as in torch's documentation, behind ``torch.`` or ``torch.nn.functional.``; or a name that
            only a method, an operator or Python has.
        kind: what it does to numbers.
        aliases: further names.
        parameters: of the function, with their defaults (None where there is none); ``*name`` takes all
            that follow.
        method: of the method, where its arguments come in another order.
        builtin: of the function in C++ behind that in Python, likewise.
        renamed: parameters by the names that they have in another form.
        fixed: parameters in which it is not linear.
        because: why it is not, if one of them varies.
        factors: parameters of a product that may vary.
        unless: options with which it is not what its kind says, and why.
        lower: what becomes of a call that is not linear in what varies.
        lower_builtin: likewise of the function in C++, if it returns something else than that in Python.
        fresh: whether what it returns lies in memory of its own.
        moves: whether it hands the same numbers on; in place, such an operation writes none.
        blind: whether no number of its arguments matters, only their shapes and types.
        reads: parameters of which that is not true, although it is of the others.
        discrete: whether it makes whole numbers of others, beside what its kind says.
        casts: whether it makes floating point numbers of whole ones.

    Example:
        >>> operation = Operation("special.entr", Kind.NONLINEAR)
        >>> list(operation.keys()), operation.function is torch.special.entr
        (['special_entr', 'entr'], True)

    """

    name: str
    kind: Kind
    aliases: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    method: tuple[str, ...] = ()
    builtin: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    fixed: tuple[str, ...] = ()
    because: str = FIXED
    factors: tuple[str, ...] = ()
    unless: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    lower: Lowering | None = None
    lower_builtin: Lowering | None = None
    fresh: bool = False
    moves: bool = False
    blind: bool = False
    reads: tuple[str, ...] = ()
    discrete: bool = False
    casts: bool = False

    def keys(self) -> Iterator[str]:
        """Yield the names under which functions, methods and operators show it, without underscores."""
        for name in (self.name, *self.aliases):
            yield name.replace(".", "_")
            _, _, leaf = name.rpartition(".")
            if name == f"special.{leaf}" and not hasattr(torch, leaf):
                yield leaf
            elif name == leaf and hasattr(torch.special, leaf):
                yield f"special_{leaf}"

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The function of torch or torch.nn.functional that has the name."""
        return function_named(self.name)

    @cached_property
    def first(self) -> str:
        """The name of the first parameter."""
        return next(iter(self.parameters), "input")


def function_named(name: str) -> Callable[..., Any]:
    """Return the function that is called so behind ``torch.`` or ``torch.nn.functional.``.

    Raises:
        AttributeError: if there is none.

    Example:
        >>> function_named("fft.fft") is torch.fft.fft, function_named("gelu") is F.gelu
        (True, True)

    """
    for space in (torch, F):
        try:
            return cast("Callable[..., Any]", operator.attrgetter(name)(space))
        except AttributeError:
            continue
    raise AttributeError(f"neither torch nor torch.nn.functional has {name}")


def described(signature: str, kind: Kind, *aliases: str, **known: Any) -> Operation:
    """Describe an operation by its signature as torch's documentation has it.

    Args:
        signature: its name, with the parameters if they matter.
        kind: what it does to numbers.
        aliases: further names.
        known: of :class:`Operation`, what else is known.

    Example:
        >>> gather = described("gather(input, dim, index)", Kind.LINEAR, fixed=("index",))
        >>> gather.name, list(gather.parameters)
        ('gather', ['input', 'dim', 'index'])

    """
    name, opened, rest = signature.partition("(")
    parameters = _parameters(rest.removesuffix(")")) if opened else {}
    for form in {"method", "builtin"} & known.keys():
        known[form] = tuple(_parameters(known[form]))
    return Operation(name, kind, aliases, parameters, **known)


def _parameters(text: str) -> dict[str, Any]:
    """Read names and defaults; a star alone, behind which names have to be given, says nothing here."""
    parsed = ast.parse(f"def _({text}): ...").body[0]
    assert isinstance(parsed, ast.FunctionDef)
    given = parsed.args
    names = [each.arg for each in given.args]
    defaults: list[Any] = [None] * (len(names) - len(given.defaults))
    found = dict(zip(names, defaults + [ast.literal_eval(each) for each in given.defaults], strict=True))
    if given.vararg is not None:
        found[f"*{given.vararg.arg}"] = ()
    for each, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        found[each.arg] = None if default is None else ast.literal_eval(default)
    return found


def linear(*names: str, **known: Any) -> Iterator[Operation]:
    """Describe operations that are linear whatever their options are."""
    return (described(each, Kind.LINEAR, **known) for each in names)


def of_kind(kind: Kind, *names: str, **known: Any) -> Iterator[Operation]:
    """Describe operations of one kind of which nothing more is to be known."""
    return (described(each, kind, **known) for each in names)


def product(
    signature: str, *aliases: str, lower: Lowering, factors: tuple[str, ...] = (), **known: Any
) -> Operation:
    """Describe a product; all of its parameters are factors, unless they are named."""
    found = described(signature, Kind.PRODUCT, *aliases, lower=lower, **{"fresh": True, **known})
    return replace(found, factors=factors or tuple(found.parameters))


def nonlinear(signature: str, *aliases: str, lower: Lowering | None, **known: Any) -> Operation:
    """Describe an operation that is linear in nothing."""
    return described(signature, Kind.NONLINEAR, *aliases, lower=lower, **{"fresh": True, **known})
