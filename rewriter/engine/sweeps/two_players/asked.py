"""By what rule cells are explained, and where it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from torch import nn

from passes.errors import RewriteError
from passes.leaves import Atom
from passes.recurrent.recurrence import Recurrence

#: By what rule multipliers go through a cell.
Cells = Literal["deeplift", "shapley"]
CELLS = "deeplift", "shapley"
_cells: ContextVar[Cells] = ContextVar("rewriter_cells", default="deeplift")


@contextmanager
def cells_by(rule: Cells) -> Iterator[None]:
    """Say by what rule this thread explains cells.

    Example:
        >>> with cells_by("shapley"):
        ...     has_two_players()
        True

    """
    token = _cells.set(rule)
    try:
        yield
    finally:
        _cells.reset(token)


def has_two_players() -> bool:
    """Whether input and state of a cell are two players in this thread."""
    return _cells.get() == "shapley"


def check_cells(rule: Cells, model: nn.Module, linked: nn.Module) -> None:
    """Check that a rule of cells has cells to be the rule of.

    Args:
        rule: of the two.
        model: the user's.
        linked: the copy of it that is explained.

    Raises:
        RewriteError: for a model without a recurrence, and for a cell of torch's that goes step by step.

    """
    if rule == "deeplift":
        return
    with cells_by(rule):
        for name, cell in model.named_modules():
            if isinstance(cell, nn.RNNCellBase) and _has_atoms(linked, name):
                check_swept(
                    name or type(cell).__name__, "it is called by a loop that is no recurrence in a graph"
                )
    if not any(isinstance(each, Recurrence) for each in linked.modules()):
        raise RewriteError(
            "cells='shapley': the model has no recurrence whose cells it could be for; leave cells out, "
            "or pass blocks=..., which needs none"
        )


def _has_atoms(linked: nn.Module, name: str) -> bool:
    try:
        return any(isinstance(each, Atom) for each in linked.get_submodule(name).modules())
    except AttributeError:
        return False


def check_swept(name: str, reason: str) -> None:
    """Raise RewriteError if cells are to be explained by their own rule, of which one is not."""
    if has_two_players():
        raise RewriteError(
            f"{name}: cells='shapley' is for recurrences that are explained as a whole; this one goes step "
            f"by step: {reason}; leave cells out, or pass blocks=..., which needs no recurrence"
        )
