"""Every operation that is known, by whatever name it is called, and what becomes of a call of it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import FunctionType, MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from passes.operations.attention import records as attention
from passes.operations.contract import Lowering, Textbook, Varies
from passes.operations.elementwise import records as elementwise
from passes.operations.linear import records as linear
from passes.operations.losses import records as losses
from passes.operations.matrices import records as matrices
from passes.operations.maxima import records as maxima
from passes.operations.names import key_of, name_of_call
from passes.operations.norms import records as norms
from passes.operations.operation import CUTS, FIXED, NO_RULE, PRODUCT, Kind, Operation
from passes.operations.order_statistics import records as order_statistics
from passes.operations.pairwise import records as pairwise
from passes.operations.products import records as products
from passes.operations.sampling import records as sampling
from passes.operations.scatter import records as scatter
from passes.operations.softmax import records as softmax
from passes.operations.without_slope import records as without_slope

#: The families of operations: each has its records, atoms, lowerings and rules in a room of its own.
FAMILIES = (
    *(linear, without_slope, elementwise, softmax, norms, maxima, order_statistics, pairwise, products),
    *(sampling, scatter, matrices, losses, attention),
)
#: All records.
OPERATIONS: tuple[Operation, ...] = tuple(each for family in FAMILIES for each in family.CALLS)

# Torch takes numpy's names of arguments for its own, and has two for one.
_OTHER_NAMES = {"axis": "dim", "keepdims": "keepdim", "train": "training"}


def _by_key() -> dict[str, Operation]:
    found: dict[str, Operation] = {}
    for operation in OPERATIONS:
        for key in operation.keys():  # noqa: SIM118 -- no mapping
            if key in found:
                raise ValueError(f"{key} is the name of {found[key].name} and of {operation.name}")
            found[key] = operation
    return found


_BY_KEY: Mapping[str, Operation] = _by_key()


def operation_of(function: Any) -> Operation | None:
    """Return what is known of a function, method, operator or property of a tensor; None if nothing is.

    Args:
        function: what a graph calls or a ``TorchFunctionMode`` sees, or the name of a method.

    Example:
        >>> import torch
        >>> [operation_of(each).name for each in (torch.Tensor.exp_, "absolute", torch.special.psi)]
        ['exp', 'abs', 'digamma']
        >>> operation_of(torch.ops.aten.special_entr.default).name, operation_of(print)
        ('special.entr', None)
        >>> operation_of(torch.Tensor.__float__).kind, operation_of(torch.Tensor.float).kind
        (<Kind.CUT: 'cut'>, <Kind.LINEAR: 'linear'>)

    """
    try:
        return _found(function)
    except TypeError:  # not everything that can be called can be hashed
        return None


@functools.lru_cache(maxsize=4096)
def _found(function: Any) -> Operation | None:
    key = key_of(function)
    if key is None or "." in key:
        return None
    # What Python calls to make a number of a tensor is shown by the name of a tensor's own method.
    shown = None if key.endswith("_") else _BY_KEY.get(name_of_call(function))
    return shown or _BY_KEY.get(key)


def is_blind(
    function: Any,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] = MappingProxyType({}),
    depends: Varies = lambda _: False,
) -> bool:
    """Whether what a function or method returns depends on shapes, types and devices only.

    Args:
        function: what is called.
        args: of the call, if it matters: a tensor may be filled with a number that is known, or with one
            that is read off another tensor.
        kwargs: likewise.
        depends: whether an argument is, or holds, what depends on the inputs.

    Example:
        >>> is_blind("new_zeros"), is_blind("exp")
        (True, False)
        >>> is_blind("new_full", ("x", 3, "a number"), depends=lambda value: value == "a number")
        False

    """
    operation = operation_of(function)
    if operation is None or not operation.blind:
        return False
    if not operation.reads or not (args or kwargs):
        return True
    arguments = arguments_of(operation, function, args, kwargs)
    return not any(depends(arguments.get(name)) for name in operation.reads)


def is_discrete(function: Any) -> bool:
    """Whether what a function or method returns is true or false, or a place: it has no slope.

    Example:
        >>> is_discrete("argmax"), is_discrete("max")
        (True, False)

    """
    operation = operation_of(function)
    return operation is not None and operation.discrete


def arguments_of(
    operation: Operation, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a call by the operation's own names of its parameters, in their order.

    Args:
        operation: what is called.
        function: as it is called.
        args: positional arguments, with the object of a method first.
        kwargs: keyword arguments.

    Example:
        >>> import torch
        >>> gather = operation_of(torch.gather)
        >>> arguments_of(gather, torch.gather, ("x", 1), {"index": "i"})
        {'input': 'x', 'dim': 1, 'index': 'i'}

    """
    found: dict[str, Any] = {}
    names = _names(operation, function)
    for k, name in enumerate(names[: len(args)]):
        if name.startswith("*"):
            found[name[1:]] = tuple(args[k:])
            break
        found[name] = args[k]
    else:
        if len(args) > len(names):
            # Of an operation of which no parameter needs a name.
            found["others"] = tuple(args[len(names) :])
    for name, value in kwargs.items():
        found[_own_name(operation, name)] = value
    order = [name.lstrip("*") for name in operation.parameters]
    return {name: _mutable(found[name]) for name in sorted(found, key=lambda each: _place(order, each))}


def _mutable(value: Any) -> Any:
    """Return plain containers for those of a graph, which nobody may change."""
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return (list if isinstance(value, list) else tuple)(map(_mutable, value))
    return value


def _place(order: list[str], name: str) -> int:
    return order.index(name) if name in order else len(order)


def _names(operation: Operation, function: Any) -> tuple[str, ...]:
    """Return the names of the parameters in the order of one form of an operation."""
    names: tuple[str, ...] = ()
    if hasattr(function, "_schema"):
        names = tuple(str(each.name) for each in function._schema.arguments)
    elif isinstance(function, FunctionType):
        names = _of_python(function)
    if names:
        return tuple(_own_name(operation, name) for name in names)
    if _is_method(function):
        return operation.method or tuple(operation.parameters)
    return operation.builtin or tuple(operation.parameters)


def _own_name(operation: Operation, name: str) -> str:
    if name == "self":
        # As torch's schemas call what a method belongs to.
        return "input" if "input" in operation.parameters else operation.first
    return name if name in operation.parameters else _OTHER_NAMES.get(name, operation.renamed.get(name, name))


@functools.cache
def _of_python(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the parameters of a function that is written in Python, nothing if it takes any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # of a builtin function in other clothes
        return ()
    if any(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in parameters):
        return ()
    return tuple(each.name for each in parameters)


def _is_method(function: Any) -> bool:
    return isinstance(function, str) or str(getattr(function, "__qualname__", "")).startswith("Tensor")


def why_not_linear(
    operation: Operation, arguments: Mapping[str, Any], varies: Varies, discrete: Varies
) -> str | None:
    """Return why a call is not linear in the tensors that vary, or None if it is.

    Args:
        operation: what is called.
        arguments: what :func:`arguments_of` returns.
        varies: whether an argument is, or holds, a tensor that varies with the inputs.
        discrete: whether it is, or holds, a mask, index or number that is read off such tensors.

    """
    if _rounds(operation, arguments, varies):
        return CUTS
    for option, reason in operation.unless.items():
        if _is_used(arguments.get(option, operation.parameters.get(option))):
            return reason
    if operation.kind is Kind.PRODUCT:
        factors = _flat([arguments.get(name) for name in operation.factors])
        if any(map(discrete, factors)):
            return FIXED
        return PRODUCT if sum(map(varies, factors)) > 1 else None
    if operation.kind is Kind.BLANK:
        read = [arguments[name] for name in operation.reads or arguments if name in arguments]
        return CUTS if varies(read) or discrete(read) else None
    if operation.kind is not Kind.LINEAR:
        return NO_RULE
    for name in operation.fixed:
        if discrete(arguments.get(name)):
            return FIXED
        if varies(arguments.get(name)):
            return operation.because
    return FIXED if discrete(list(arguments.values())) else None


def _rounds(operation: Operation, arguments: Mapping[str, Any], varies: Varies) -> bool:
    """Whether a call makes whole numbers of what varies in floating point, as far as its options say so."""
    given = _flat(arguments.values())
    types = [_type_named_by(each, operation.casts) for each in given]
    return any(each is not None and not _has_slope(each) for each in types) and any(
        varies(each) and (known is None or _has_slope(known))
        for each, known in ((each, _type_of(each)) for each in given)
    )


def _type_named_by(option: Any, casts: bool) -> torch.dtype | None:
    """Return the type of numbers that an option asks for, None if it asks for none, or nobody knows."""
    if isinstance(option, torch.dtype):
        return option
    if isinstance(option, type):
        # Python's types count as torch's, and torch has classes of tensors that say both type and device.
        found = {bool: torch.bool, int: torch.int64}.get(option, getattr(option, "dtype", None))
        return found if isinstance(found, torch.dtype) else None
    if isinstance(option, str) and option.startswith("torch.") and option.endswith("Tensor"):
        return _type_named_by(getattr(torch, option.rpartition(".")[2], None), casts)
    # In the type of another tensor.
    return option.dtype if casts and isinstance(option, Tensor) else None


def _type_of(value: Any) -> torch.dtype | None:
    """Return the type of the numbers of a tensor, or of a node of a graph that has one noted."""
    if isinstance(value, fx.Node):
        value = value.meta.get("val", value.meta.get("tensor_meta"))
    found = getattr(value, "dtype", None)
    return found if isinstance(found, torch.dtype) else None


def _has_slope(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def lowered(
    function: Any, varies: Varies, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Textbook | None:
    """Return what a call becomes, out of place; None if it stays: it is linear, or nothing becomes of it.

    Args:
        function: what is called.
        varies: says whether an argument varies.
        args: positional arguments.
        kwargs: keyword arguments.

    """
    operation = operation_of(function)
    lower = None if operation is None else _lowering_of(operation, function)
    if operation is None or lower is None:
        return None
    arguments = arguments_of(operation, function, args, kwargs)
    if why_not_linear(operation, arguments, varies, _nothing) is None:
        return None
    taken = _taken(lower) or frozenset(operation.parameters) - {"inplace"}
    for name in [each for each in arguments if each not in taken]:
        # An option that no lowering knows, unless it is not used.
        if _is_used(arguments.pop(name)) and not name.startswith("_") and name not in _OF_SPEED:
            return None
    return lower(varies, **arguments)


def _lowering_of(operation: Operation, function: Any) -> Lowering | None:
    in_python = isinstance(function, FunctionType)
    return operation.lower if in_python else operation.lower_builtin or operation.lower


# They change how fast a kernel is.
_OF_SPEED = ("cudnn_enable", "cudnn_enabled", "path")


@functools.cache
def _taken(lower: Callable[..., Any]) -> frozenset[str] | None:
    """Return the arguments that a lowering takes, None if it takes whatever the operation has."""
    parameters = inspect.signature(lower).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return None
    return frozenset(each.name for each in parameters)


def _is_used(option: Any) -> bool:
    return option is not None and option is not False


def _nothing(_: Any) -> bool:
    return False


def _flat(values: Any) -> list[Any]:
    return [each for part in values for each in (_flat(part) if isinstance(part, list | tuple) else [part])]
