"""Run a model as explainers run it, and keep what each call takes and returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from passes.leaves import Atom
from passes.lowering.running_code import CallAtom, run_lowered, run_quietly, run_whole
from passes.lowering.written import put, without_out, written_by
from passes.operations.catalogue import operation_of
from passes.operations.operation import Kind
from passes.user_code.observe import Call, Observer
from passes.user_code.structure import numbers_in, tensors_in
from rewriter.compiler.uncovered import is_inside, runs_as_code
from rewriter.diagnosis.numbers import copies
from rewriter.keras.recurrent.layer import KerasBidirectional, KerasRecurrent

_OF_KERAS = (KerasRecurrent, KerasBidirectional)


@dataclass(frozen=True)
class Made:
    """What a call took and gave in the run on the exchanged batch: tensors, and other numbers."""

    label: str
    taken: list[Tensor]
    numbers: list[Any]
    given: list[Tensor]
    read: list[Any]


class Explained(Observer):
    """A run in which code without a graph runs as explainers have it run.

    Args:
        islands: names of the modules whose code that is; none in a model that is not decomposed.

    """

    def __init__(self, islands: Iterable[str]) -> None:
        super().__init__()
        self.islands = frozenset(islands)

    def forward_of(self, name: str, module: nn.Module) -> Callable[..., Any]:
        """Have the calls in an island made by atoms."""
        plain = module.forward
        if name in self.islands:
            return partial(self.enter, partial(_lowered, plain, self._by_atom), name, module)
        return super().forward_of(name, module)

    def _by_atom(self, name: str, atom: Atom, operands: tuple[Any, ...]) -> Any:
        return self.shown(atom, name, partial(type(atom).forward, atom), operands, {})

    def enter(
        self, plain: Callable[..., Any], name: str, module: nn.Module, *args: Any, **kwargs: Any
    ) -> Any:
        """Run a module; in an island, its code is lowered unless it is one call."""
        run = partial(super().enter, plain, name, module)
        if self._quiet or not self.is_whole(module):
            return run(*args, **kwargs)
        return (run_quietly if isinstance(module, Atom) else run_whole)(run, *args, **kwargs)

    def called(self, module: nn.Module) -> str:
        """Return the name of the class, that of Keras' for what its layers became."""
        return module.kind if isinstance(module, _OF_KERAS) else super().called(module)

    def is_whole(self, module: nn.Module) -> bool:
        """In an island the code of a module without a rule is seen, as explainers see it."""
        where = self._inside[-1] if self._inside else ""
        if is_inside(where, self.islands):
            return super().is_whole(module) and not runs_as_code(module)
        # A recurrent layer of Keras is one call, as one of torch's is.
        return super().is_whole(module) or isinstance(module, _OF_KERAS)


def _lowered(plain: Callable[..., Any], call: CallAtom, *args: Any, **kwargs: Any) -> Any:
    return run_lowered(plain, call, args, kwargs)


class Recorded(Explained):
    """A run that keeps what each call takes and returns."""

    def __init__(self, islands: Iterable[str] = ()) -> None:
        super().__init__(islands)
        self.calls: list[Made] = []

    def made(self, call: Call, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call."""
        refuse_transforms(call)
        taken, numbers = copies(tensors_in((args, kwargs))), numbers_in((args, kwargs))
        out = out_of(call, kwargs)
        result = run(*args, **kwargs) if out is None else put(out, run(*args, **without_out(kwargs)))
        given = tensors_in(given_by(call, args, kwargs, result))
        if is_blank(call):
            # What was there before is nobody's number, and may be none at all.
            for each in filter(is_floating, given):
                each.nan_to_num_(0.0, 0.0, 0.0)
        self.calls.append(Made(label_of(call), taken, numbers, copies(given), numbers_in(result)))
        return result


def refuse_transforms(call: Call) -> None:
    """Raise RewriteError for a call whose numbers nobody sees: it is made for a transform of torch.func."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RewriteError(
            f"{call.name or 'the model'}: {call.operation} {call.source} runs in a transform of torch.func, "
            "such as vmap or grad, where what passes through single operations cannot be followed; write it "
            "for the whole batch, or with torch.autograd.grad"
        )


def label_of(call: Call) -> str:
    """Return what tells a call from others in a run."""
    return f"{call.name} {call.operation}"


def written_in(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a call writes numbers to, None if to nothing."""
    return None if isinstance(call.function, nn.Module) else written_by(call.function, args, kwargs)


def out_of(call: Call, kwargs: dict[str, Any]) -> Any:
    """Return where a function is told to put its result."""
    return None if isinstance(call.function, nn.Module) else kwargs.get("out")


def is_blank(call: Call) -> bool:
    """Whether a call makes a tensor of sizes alone, in which there may be anything."""
    operation = None if isinstance(call.function, nn.Module) else operation_of(call.function)
    return operation is not None and operation.kind is Kind.BLANK and operation.blind and not operation.reads


def given_by(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    """Return what a call gives: what it returns, or has written to."""
    return written_in(call, args, kwargs) if result is None else result


def is_floating(value: Any) -> bool:
    """Whether a value is a tensor with a slope."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
