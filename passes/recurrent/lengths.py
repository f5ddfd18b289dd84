"""Run a model once to see how long the sequences of its recurrences are."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from passes.errors import RewriteError
from passes.recurrent.kernels import KERNELS
from passes.recurrent.recurrence import Recurrence
from passes.recurrent.unroll import Call
from passes.user_code.clone import private_copy
from passes.user_code.hooks import modes_kept
from passes.user_code.source import user_line, where_failed, with_line
from passes.user_code.surroundings import unnoticed
from passes.user_code.twin import OnCopies, Twin


def record_calls(
    model: nn.Module, example_inputs: Any, *, all_rewritten: bool = True, is_graph: bool = False
) -> dict[int, list[Call]]:
    """Return the calls of each recurrence of ``model``, by ``id``, in the order they are made.

    The run is in evaluation mode, without gradients, on copies of the model, or of its tensors, and of the
    inputs, and leaves the random number generators as they were.

    Args:
        model: at the rolled level.
        example_inputs: what :func:`as_arguments` reads.
        all_rewritten: no recurrent kernel of torch's may run.
        is_graph: none of the user's code is left in it, and nobody else runs it.

    Raises:
        RewriteError: if the model does not take the inputs, or runs a recurrent kernel although
            ``all_rewritten``.

    Example:
        >>> from passes.recurrent.cells import RNNCellAtoms
        >>> rolled = Recurrence(nn.Linear(2, 2), RNNCellAtoms("tanh"))
        >>> calls = record_calls(rolled, (torch.zeros(5, 1, 2), None, torch.zeros(1, 2)))
        >>> calls[id(rolled)]
        [Call(length=5, masked=False)]

    """
    in_place = is_graph and OnCopies.runs(model)
    probe = model if in_place else Twin(model).model
    run = OnCopies(model) if in_place else probe
    calls: dict[int, list[Call]] = {}
    hooks = []
    for module, twin in zip(model.modules(), probe.modules(), strict=True):
        if isinstance(module, Recurrence):
            made = calls.setdefault(id(module), [])
            hooks.append(twin.register_forward_pre_hook(_noting(made)))
    # The model may write to its inputs.
    args, kwargs = as_arguments(copied(example_inputs))
    kernels = _KernelCalls()
    try:
        with torch.no_grad(), unnoticed(model), modes_kept(probe), kernels:
            run.eval()(*args, **kwargs)
    except RewriteError as error:
        with_line(error)
        raise
    except Exception as error:
        raise RewriteError(
            f"example_inputs do not run through the model: {type(error).__name__}: {error}, "
            f"{where_failed(error)}; pass them as the model is called: one argument, a tuple of them, or a "
            "mapping of keyword arguments"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if kernels.found and all_rewritten:
        found = ", ".join(map(" at ".join, sorted(kernels.found)))
        raise RewriteError(
            f"the model runs torch's own {found}, in a layer that "
            "was not found (is it made during the forward pass?) and is not rewritten; make it an attribute, "
            "self.layer = ..., in __init__"
        )
    return calls


def as_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read example inputs: one argument, a tuple or list of them, or a mapping of keyword arguments.

    Example:
        >>> as_arguments((1, 2)), as_arguments({"x": 1}), as_arguments(1)
        (((1, 2), {}), ((), {'x': 1}), ((1,), {}))

    """
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    # A PackedSequence is a named tuple, and one argument.
    if isinstance(example_inputs, list) or type(example_inputs) is tuple:
        return tuple(example_inputs), {}
    return (example_inputs,), {}


class _KernelCalls(TorchFunctionMode):
    """Notes which recurrent kernels of torch's run."""

    def __init__(self) -> None:
        super().__init__()
        # Each with the line of the user's at which it runs, if there is one.
        self.found: set[tuple[str, ...]] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in KERNELS:
            line = user_line()
            self.found.add((func.__name__, line) if line else (func.__name__,))
        return func(*args, **(kwargs or {}))


def copied(example_inputs: Any) -> Any:
    """Copy example inputs, for code that may write to them."""
    try:
        return copy.deepcopy(example_inputs)
    except RecursionError:
        return private_copy(example_inputs)
    except RuntimeError:  # a tensor with a history cannot be copied
        return example_inputs


def _noting(made: list[Call]) -> Any:
    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        gates: Tensor = args[0]
        made.append(Call(gates.shape[0], args[1] is not None))

    return note
