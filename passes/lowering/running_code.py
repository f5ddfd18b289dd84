"""Lower the calls of code while it runs, where there is no graph of it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from passes.leaves import Atom
from passes.lowering.written import put, without_out, written_by
from passes.operations.catalogue import is_blind, is_discrete, lowered, operation_of
from passes.operations.contract import Textbook, Varies
from passes.operations.in_place import without_inplace
from passes.operations.names import in_place_name, name_of_call
from passes.operations.operation import Kind
from passes.user_code.hooks import applied_by, set_forward
from passes.user_code.structure import map_tensors, tensors_in

_active: ContextVar[LowerRunning | None] = ContextVar("passes_lowering", default=None)
# Of a model that holds such code, and is a graph elsewhere.
_around: ContextVar[LowerRunning | None] = ContextVar("passes_around", default=None)
#: Takes the name of a call, an atom and its operands, and returns what the atom makes of them.
CallAtom = Callable[[str, Atom, tuple[Any, ...]], Any]


class LowerRunning(TorchFunctionMode):
    """While active in a thread, calls of known functions on varying tensors are made by atoms.

    What varies is what is noted as such, and what is computed from it.

    Args:
        call: calls an atom; None to let all calls be made as they are, and only know what varies.

    Example:
        >>> x = torch.ones(2)
        >>> def call(name, atom, operands):
        ...     print(name, type(atom).__name__)
        ...     return atom(*operands)
        >>> with LowerRunning(call) as mode:
        ...     mode.note(x)
        ...     y = torch.tanh(x + 1)
        tanh TanhAtom

    """

    def __init__(self, call: CallAtom | None) -> None:
        super().__init__()
        self.call = call
        around = _around.get()
        # A value varies wherever code finds it: in an attribute, say, that other code has set.
        self.varying: Any = WeakIdKeyDictionary() if around is None else around.varying

    def note(self, value: Any) -> None:
        """Remember that the tensors in ``value`` vary; masks are the same for all that a rule compares."""
        for each in tensors_in(value):
            if each.dtype != torch.bool and not isinstance(each, nn.Parameter):
                self.varying[each] = True

    def varies(self, value: Any) -> bool:
        """Whether a value is, or holds, a tensor that varies."""
        return any(
            each in self.varying or (each._base is not None and each._base in self.varying)
            for each in tensors_in(value)
        )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let an atom make the call, or make it as it is."""
        kwargs = kwargs or {}
        if not (self.varies(args) or self.varies(kwargs)):
            return func(*args, **kwargs)
        if hands_out(func):
            # Torch refuses numpy a tensor with a gradient, which in the user's own run it may not have.
            args, kwargs = map_tensors(Tensor.detach, (args, kwargs))
        out, written = kwargs.get("out"), written_by(func, args, kwargs)
        kwargs = without_out(kwargs)
        textbook = None
        if self.call is not None and _has_slopes((args, kwargs)):
            textbook = textbook_of(func, self.varies, args, kwargs)
        result = func(*args, **kwargs) if textbook is None else self._called(name_of_call(func), *textbook)
        if out is not None:
            result = put(out, result)
        elif textbook is not None and written is not None:
            result = written.copy_(result)
        if not (is_blind(func, args, kwargs, self.varies) or is_discrete(func)):
            self.note(result)
        for each in tensors_in(written):
            self.note([each, each._base])
        return result

    def applied(self, function: Any, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Let a ``torch.autograd.Function`` run as it is: its gradient is that of its own backward."""
        with torch._C.DisableTorchFunction():
            result = plain(*args, **kwargs)
        if self.varies((args, kwargs)):
            self.note(result)
        return result

    def _called(self, name: str, module: nn.Module, operands: tuple[Any, ...]) -> Any:
        assert self.call is not None
        module.eval()
        if isinstance(module, Atom):
            return run_quietly(self.call, name, module, operands)
        for own, atom in module.named_modules():
            if isinstance(atom, Atom):
                set_forward(atom, partial(self._inner, f"{name}.{own}", atom))
        # What a textbook module calls is lowered in turn.
        with self:
            return module(*operands)

    def _inner(self, name: str, atom: Atom, *operands: Any) -> Any:
        del atom.__dict__["forward"]
        assert self.call is not None
        return run_quietly(self.call, name, atom, operands)


def hands_out(function: Any) -> bool:
    """Whether a call hands numbers on without their gradient, to Python or numpy perhaps.

    Example:
        >>> hands_out(Tensor.numpy), hands_out(Tensor.detach_), hands_out(Tensor.clone)
        (True, False, False)

    """
    operation = operation_of(function)
    return operation is not None and operation.kind is Kind.CUT and in_place_name(function) is None


def run_lowered(
    plain: Callable[..., Any], call: CallAtom, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run code whose arguments vary, with its calls lowered; code in such code is a part of it.

    Example:
        >>> double = lambda name, atom, operands: 2 * atom(*operands)
        >>> run_lowered(torch.exp, double, (torch.zeros(1),), {})
        tensor([2.])

    """
    if _active.get() is not None:
        return plain(*args, **kwargs)
    return _run_under(_active, LowerRunning(call), plain, args, kwargs)


def run_around(plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a model that holds code which is lowered while it runs, and know what varies in all of it.

    Example:
        >>> run_around(torch.exp, torch.zeros(1))
        tensor([1.])

    """
    if _active.get() is not None or _around.get() is not None:
        return plain(*args, **kwargs)
    return _run_under(_around, LowerRunning(None), plain, args, kwargs)


def _run_under(
    place: ContextVar[LowerRunning | None],
    mode: LowerRunning,
    plain: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    mode.note(args)
    mode.note(kwargs)
    token = place.set(mode)
    try:
        with applied_by(mode.applied), mode:
            return plain(*args, **kwargs)
    finally:
        place.reset(token)


def run_quietly(plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run what has a rule already, in code that is lowered while it runs: its result varies."""
    mode = _active.get() or _around.get()
    if mode is None:
        return plain(*args, **kwargs)
    with torch._C.DisableTorchFunction():
        result = plain(*args, **kwargs)
    note_varying(result)
    return result


def run_whole(plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run what stays as it is, in code that is lowered while it runs.

    Its result varies if an argument does.
    """
    mode = _active.get() or _around.get()
    if mode is None:
        return plain(*args, **kwargs)
    with torch._C.DisableTorchFunction():
        result = plain(*args, **kwargs)
    if mode.varies((args, kwargs)):
        mode.note(result)
    return result


def _has_slopes(arguments: Any) -> bool:
    """Whether a rule has anything to do: integers and masks have no multipliers."""
    return any(each.is_floating_point() or each.is_complex() for each in tensors_in(arguments))


def note_varying(value: Any) -> None:
    """In code that is lowered while it runs, say that ``value`` varies."""
    mode = _active.get() or _around.get()
    if mode is not None:
        mode.note(value)


def textbook_of(func: Any, varies: Varies, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Textbook | None:
    """Return what a call becomes, out of place; None if it stays.

    Args:
        func: as a ``TorchFunctionMode`` sees it.
        varies: says whether an argument varies.
        args: of the call.
        kwargs: of the call.

    """
    return lowered(func, varies, *without_inplace(func, args, without_out(kwargs)))
