"""What runs the steps of a model's recurrences, and what is said where it could be faster."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from torch import nn

from passes.recurrent.recurrence import Recurrence
from rewriter.engine.sweeps.compiled import has_c_form
from rewriter.engine.sweeps.derived import DerivedSweep
from rewriter.engine.sweeps.library import Compiled, checked, compiling, functions_for, has_form, how_to_mend
from rewriter.engine.sweeps.linked_recurrence import can_fuse
from rewriter.engine.sweeps.tried_out import NotElementwiseError


class SlowBackendWarning(UserWarning):
    """A model's recurrences run on torch's operations although there is a form of them in C."""


def backend_of(model: nn.Module, wanted: Compiled) -> str:
    """Return ``"C"`` if there are recurrences with a form in C, and all of them run in it, else ``"torch"``.

    Args:
        model: decomposed.
        wanted: whether the library is to be used, or built.

    Example:
        >>> backend_of(nn.Linear(1, 1), True)
        'torch'

    """
    with compiling(wanted):
        found = [functions_for(next(steps.parameters())) is not None for steps in _with_form(model)]
    return "C" if found and all(found) else "torch"


def chosen_backend(model: nn.Module, wanted: Compiled, stacklevel: int) -> tuple[str, Compiled]:
    """Return what runs a model's recurrences, and what is to be wanted from now on; warn if that is slow.

    Args:
        model: decomposed.
        wanted: whether the library is to be used, or built.
        stacklevel: of the code that is told.

    Example:
        >>> chosen_backend(nn.Linear(1, 1), True, stacklevel=1)
        ('torch', True)

    """
    backend = backend_of(model, checked(wanted))
    if backend == "C" or not wanted or not any(_with_form(model)):
        return backend, wanted
    warnings.warn(
        "the steps of this model's recurrences run on torch's operations, several times slower than in C: "
        + how_to_mend(built=wanted == "build"),
        SlowBackendWarning,
        stacklevel=stacklevel + 1,
    )
    return backend, False


def _with_form(model: nn.Module) -> Iterator[Recurrence]:
    for steps in model.modules():
        if not isinstance(steps, Recurrence) or not can_fuse(steps.hidden):
            continue
        if has_form(next(steps.parameters())) and (has_c_form(steps) or _has_program(steps)):
            yield steps


def _has_program(steps: Recurrence) -> bool:
    try:
        return DerivedSweep(steps.cell).program is not None
    except NotElementwiseError:
        return False
