"""Find the partner of every number, wherever a model keeps its batch.

An explainer's batch holds samples in its first half and references in its second. Inside the model the
batch may be in any dimension, or merged with time in either order. Rather than guess where it is, run the
model a second time with samples and references exchanged: then each atom gets, at every place, what the
partner of that place has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from passes.errors import RewriteError
from passes.leaves import Atom
from passes.lowering.running_code import CallAtom, run_quietly
from passes.recurrent.layout import SequenceBegin
from passes.user_code.clone import clone_structure
from passes.user_code.hooks import set_forward
from passes.user_code.randomness import random_state_kept
from rewriter.compiler.islands import islands_of, lowered_islands, may_write, run_islands

Tensors = tuple[Tensor, ...]


class Partners:
    """What each atom of a model gets, and gives, when samples and references change places.

    A private copy of the model is run, so that whatever hooks the model has, or will get, see nothing of it.

    Args:
        model: holds atoms.

    """

    def __init__(self, model: nn.Module) -> None:
        self._copy = clone_structure(model)
        self._writes = may_write(model)
        self._entries: deque[tuple[str, Tensors, Any]] | None = None
        for name, module in self._copy.named_modules():
            if isinstance(module, Atom | SequenceBegin):
                module.register_forward_hook(self._note(name))
                set_forward(module, partial(run_quietly, module.forward))
        self._islands = islands_of(model)
        for module, forward in lowered_islands(self._copy, self._islands, self._noting):
            set_forward(module, forward)

    def _noting(self, island: str) -> CallAtom:
        def call(name: str, atom: Atom, operands: Tensors) -> Any:
            output = atom(*operands)
            self._note(f"{island}.{name}".lstrip("."))(atom, operands, output)
            return output

        return call

    def _note(self, name: str) -> Any:
        def note(_: nn.Module, operands: tuple[Any, ...], output: Any) -> None:
            if self._entries is not None:
                if self._writes:
                    operands, output = pytree.tree_map_only(Tensor, torch.clone, (operands, output))
                self._entries.append((name, operands, output))

        return note

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Run the copy on the exchanged batch; return False, and do not, if its rows are odd in number."""
        rows = next(
            (each.shape[0] for each in pytree.tree_leaves((args, kwargs)) if _has_rows(each)),
            1,
        )
        if rows % 2:
            return False
        args, kwargs = pytree.tree_map(lambda each: exchanged(each, rows), (args, kwargs))
        self._entries = deque()
        with torch.no_grad(), random_state_kept():
            run_islands(self._islands, self._copy, *args, **kwargs)
        return True

    def next(self, name: str) -> tuple[Tensors, Any]:
        """Return the operands and the output of the call that runs now, for its partners.

        Raises:
            RewriteError: if the exchanged batch took another path through the model's code.

        """
        assert self._entries is not None
        if not self._entries or self._entries[0][0] != name:
            raise _another_path(name)
        return self._entries.popleft()[1:]

    def finish(self) -> None:
        """Forget the run.

        Raises:
            RewriteError: if it called more than the model did.

        """
        left, self._entries = self._entries, None
        if left:
            raise _another_path(left[0][0])

    def forget(self) -> None:
        """Forget the run, after a failure."""
        self._entries = None


def _another_path(name: str) -> RewriteError:
    return RewriteError(
        f"{name}: the model's code took another path when samples and references changed places in the "
        "batch; what it runs must not depend on the order of the rows"
    )


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def exchanged(value: Any, rows: int) -> Any:
    """Return a copy of a tensor with the halves of its ``rows`` exchanged; what has none is the same for all.

    Example:
        >>> exchanged(torch.tensor([1, 2, 3, 4]), 4), exchanged(torch.tensor([5, 6]), 4)
        (tensor([3, 4, 1, 2]), tensor([5, 6]))

    """
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    if not _has_rows(value) or value.shape[0] != rows:
        return value.clone()
    return torch.cat(value.chunk(2)[::-1])
