"""Lower the calls of code while it runs, where there is no graph of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from passes.graph.dataflow import is_of_shape, is_step
from passes.leaves import Atom
from passes.operations.contract import Lowering, Textbook, Varies
from passes.operations.names import name_of_call

_active: ContextVar[LowerRunning | None] = ContextVar("passes_lowering", default=None)
#: Takes the name of a call, an atom and its operands, and returns what the atom makes of them.
CallAtom = Callable[[str, Atom, tuple[Any, ...]], Any]


class LowerRunning(TorchFunctionMode):
    """While active in a thread, calls of known functions on varying tensors are made by atoms.

    What varies is what is noted as such, and what is computed from it.

    Args:
        lowerings: by function, or by name of the method.
        call: calls an atom.

    Example:
        >>> from passes.operations.elementwise.lowering import CALLS
        >>> x = torch.ones(2)
        >>> def call(name, atom, operands):
        ...     print(name, type(atom).__name__)
        ...     return atom(*operands)
        >>> with LowerRunning(CALLS, call) as mode:
        ...     mode.note(x)
        ...     y = torch.tanh(x + 1)
        tanh TanhAtom

    """

    def __init__(self, lowerings: Mapping[Any, Lowering], call: CallAtom) -> None:
        super().__init__()
        self.lowerings = lowerings
        self.call = call
        self.varying: Any = WeakIdKeyDictionary()

    def note(self, value: Any) -> None:
        """Remember that the tensors in ``value`` vary; masks are the same for all that a rule compares."""
        if isinstance(value, Tensor):
            if value.dtype != torch.bool and not isinstance(value, nn.Parameter):
                self.varying[value] = True
        elif isinstance(value, Mapping):
            self.note(list(value.values()))
        elif isinstance(value, list | tuple):
            for each in value:
                self.note(each)

    def varies(self, value: Any) -> bool:
        """Whether a value is, or holds, a tensor that varies."""
        if isinstance(value, Tensor):
            return value in self.varying or (value._base is not None and value._base in self.varying)
        if isinstance(value, Mapping):
            return self.varies(list(value.values()))
        return isinstance(value, list | tuple) and any(map(self.varies, value))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let an atom make the call, or make it as it is."""
        kwargs = kwargs or {}
        if not (self.varies(args) or self.varies(kwargs)):
            return func(*args, **kwargs)
        asked = _asks_to_write(func, args, kwargs)
        textbook = textbook_of(func, self.lowerings, self.varies, args, kwargs)
        if textbook is None:
            result = func(*args, **kwargs)
            name = name_of_call(func)
            if not (is_of_shape(name) or is_step(name)):
                self.note(result)
            if (asked or _writes(func)) and isinstance(args[0], Tensor):
                self.note([args[0], args[0]._base])
            return result
        result = self._called(name_of_call(func), *textbook)
        if asked or _writes(func):
            result = args[0].copy_(result)
        self.note(result)
        return result

    def _called(self, name: str, module: nn.Module, operands: tuple[Any, ...]) -> Any:
        module.eval()
        if isinstance(module, Atom):
            return run_quietly(self.call, name, module, operands)
        for own, atom in module.named_modules():
            if isinstance(atom, Atom):
                object.__setattr__(atom, "forward", partial(self._inner, f"{name}.{own}", atom))
        # What a textbook module calls is lowered in turn.
        with self:
            return module(*operands)

    def _inner(self, name: str, atom: Atom, *operands: Any) -> Any:
        del atom.__dict__["forward"]
        return run_quietly(self.call, name, atom, operands)


def run_lowered(
    plain: Callable[..., Any],
    lowerings: Mapping[Any, Lowering],
    call: CallAtom,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run code whose arguments vary, with its calls lowered; code in such code is a part of it.

    Example:
        >>> from passes.operations.elementwise.lowering import CALLS
        >>> double = lambda name, atom, operands: 2 * atom(*operands)
        >>> run_lowered(torch.exp, CALLS, double, (torch.zeros(1),), {})
        tensor([2.])

    """
    if _active.get() is not None:
        return plain(*args, **kwargs)
    mode = LowerRunning(lowerings, call)
    mode.note(args)
    mode.note(kwargs)
    token = _active.set(mode)
    try:
        with mode:
            return plain(*args, **kwargs)
    finally:
        _active.reset(token)


def run_quietly(plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run what has a rule already, in code that is lowered while it runs: its result varies."""
    mode = _active.get()
    if mode is None:
        return plain(*args, **kwargs)
    with torch._C.DisableTorchFunction():
        result = plain(*args, **kwargs)
    note_varying(result)
    return result


def note_varying(value: Any) -> None:
    """In code that is lowered while it runs, say that ``value`` varies."""
    mode = _active.get()
    if mode is not None:
        mode.note(value)


def textbook_of(
    func: Any,
    lowerings: Mapping[Any, Lowering],
    varies: Varies,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Textbook | None:
    """Return what a call becomes, out of place; None if it stays.

    Args:
        func: as a ``TorchFunctionMode`` sees it.
        lowerings: by function, or by name of the method.
        varies: says whether an argument varies.
        args: of the call.
        kwargs: of the call.

    """
    lowering = lowering_of(func, lowerings)
    if lowering is None:
        return None
    place = _place_of_inplace(func)
    if place is not None:
        args, kwargs = args[:place], {name: each for name, each in kwargs.items() if name != "inplace"}
    return lowering(varies, *args, **kwargs)


def lowering_of(func: Any, lowerings: Mapping[Any, Lowering]) -> Lowering | None:
    """Return what lowers a function that a ``TorchFunctionMode`` sees.

    Example:
        >>> from passes.operations.elementwise.lowering import CALLS
        >>> lowering_of(torch.Tensor.tanh_, CALLS) is lowering_of(torch.tanh, CALLS)
        True

    """
    found = _known(func, lowerings)
    if found is not None:
        return found
    name = getattr(func, "__name__", "")
    if getattr(func, "__qualname__", "").startswith("Tensor"):
        return lowerings.get(name.rstrip("_") if _writes(func) else name)
    if not _writes(func):
        return None
    same = (getattr(space, name.rstrip("_"), None) for space in (torch, F))
    return next((lowerings[each] for each in same if each in lowerings), None)


def _known(func: Any, lowerings: Mapping[Any, Lowering]) -> Lowering | None:
    try:
        return lowerings.get(func)
    except TypeError:  # not everything that can be called can be hashed
        return None


def _writes(func: Any) -> bool:
    """Whether a function writes to its first argument, as its name says."""
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _asks_to_write(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    place = _place_of_inplace(func)
    if place is None:
        return False
    return bool(kwargs.get("inplace", args[place] if len(args) > place else False))


@lru_cache(maxsize=1024)
def _place_of_inplace(func: Any) -> int | None:
    try:
        names = list(inspect.signature(func).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None
