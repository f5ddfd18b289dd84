"""Which functions the lowerings make atoms of, found by lowering torch's own sample calls."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from passes.leaves import Atom
from passes.lowering.running_code import LowerRunning
from passes.operations.catalogue import OPERATIONS, operation_of
from passes.operations.operation import Operation
from tests.support.oracles.samples import DOUBLE, ENTRIES, REFUSALS, Call, calls, name_of, run, tensors_of

#: A type of atoms that compute any function of numbers by its name, and the function.
Built = tuple[type[nn.Module], str]


def function_of(name: str, options: dict[str, Any]) -> str:
    """Return what such an atom computes: the function, in the mode that an option names."""
    modes = [each for each in options.values() if isinstance(each, str) and each != "none"]
    return " ".join([name, *modes])


def _variants(call: Call) -> Iterator[Call]:
    """Yield a call, and the same with a number, or a tensor, in the place of another operand."""
    function, args, kwargs = call
    yield call
    for k, each in enumerate(args):
        if isinstance(each, int | float | Tensor):
            other = 0.7 if isinstance(each, Tensor) else torch.rand(2, dtype=DOUBLE) + 0.1
            yield function, (*args[:k], other, *args[k + 1 :]), kwargs


def _plain_calls(operation: Operation) -> Iterator[Call]:
    """Yield calls of an operation with tensors and numbers, of which torch has perhaps no sample."""
    x = torch.rand(2, dtype=DOUBLE) + 0.1
    given = ((x,), (x, x + 1), (x, 0.7), (0.7, x), (x, 2), (2, x), (x, x, x + 1), (x, 0.1, 0.7))
    for name in (operation.name, *operation.aliases):
        for space in (torch, torch.special, F, Tensor):
            function = getattr(space, name.rpartition(".")[2], None)
            if operation_of(function) is operation:
                yield from ((function, args, {}) for args in given)


def _kind_of(call: Call) -> str:
    """Return what a lowering may go by: types, ranks and options, and no number of a tensor."""
    leaves = pytree.tree_map(
        lambda each: (each.dtype, each.dim()) if isinstance(each, Tensor) else each, call[1:]
    )
    return f"{call[0]} {leaves}"


def _atoms_of(call: Call) -> Iterator[nn.Module]:
    """Yield the atoms that a call becomes, whichever of its tensors vary."""
    for variant in _variants(call):
        floats = [each for each in tensors_of(variant[1:]) if each.is_floating_point()]
        for varying in ([*floats], *([each] for each in floats)):
            found: list[nn.Module] = []

            def keep(_: str, atom: Atom, operands: tuple[Any, ...], found: list[nn.Module] = found) -> Any:
                found.append(atom)
                with torch._C.DisableTorchFunction():
                    return atom(*operands)

            try:
                with warnings.catch_warnings(), LowerRunning(keep) as mode:
                    warnings.simplefilter("ignore")
                    mode.note(varying)
                    run(variant)
            except REFUSALS:
                # The operation takes no such operands; what it became until then, it becomes.
                pass
            yield from found


def built_by(operations: Iterable[Operation]) -> set[Built]:
    """Return what the lowerings of operations make atoms of."""
    lowered = [each for each in operations if each.lower is not None]
    # By what they are: to compare records takes longer than to make all their calls.
    known = set(map(id, lowered))
    entries = (each for each in ENTRIES if id(operation_of(name_of(each))) in known)
    sampled = {_kind_of(call): call for each in entries for call in calls(each)}.values()
    plain = (call for each in lowered for call in _plain_calls(each))
    return {
        (type(atom), function_of(str(atom.function), vars(atom)["options"]))
        for source in (sampled, plain)
        for call in source
        for atom in _atoms_of(call)
        if hasattr(atom, "options") and hasattr(atom, "function")
    }


@functools.cache
def all_built() -> frozenset[Built]:
    """Return what all lowerings make atoms of."""
    return frozenset(built_by(OPERATIONS))
