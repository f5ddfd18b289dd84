"""Run a model once to see how long the sequences of its recurrences are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from passes.errors import InputError, RewriteError
from passes.recurrence import Recurrence
from passes.twin import Twin
from passes.unroll import Call


def record_calls(model: nn.Module, example_inputs: Any) -> dict[int, list[Call]]:
    """Return the calls of each recurrence of ``model``, by ``id``, in the order they are made.

    The run is in evaluation mode, without gradients, on a copy of the model, and leaves the random
    number generators as they were.

    Raises:
        RewriteError: if the model does not take the inputs.

    Example:
        >>> from passes.cells import RNNCellAtoms
        >>> rolled = Recurrence(nn.Linear(2, 2), RNNCellAtoms("tanh"))
        >>> calls = record_calls(rolled, (torch.zeros(5, 1, 2), None, torch.zeros(1, 2)))
        >>> calls[id(rolled)]
        [Call(length=5, masked=False)]

    """
    probe = Twin(model).model.eval()
    calls: dict[int, list[Call]] = {}
    for module, twin in zip(model.modules(), probe.modules(), strict=True):
        if isinstance(module, Recurrence):
            made = calls.setdefault(id(module), [])
            twin.register_forward_pre_hook(_noting(made))
    args, kwargs = as_arguments(example_inputs)
    devices = sorted({tensor.device.index or 0 for tensor in probe.parameters() if tensor.is_cuda})
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            probe(*args, **kwargs)
    except InputError:
        raise
    except Exception as error:
        raise RewriteError(
            f"example_inputs do not run through the model: {type(error).__name__}: {error}"
        ) from error
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


def _noting(made: list[Call]) -> Any:
    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        gates: Tensor = args[0]
        made.append(Call(gates.shape[0], args[1] is not None))

    return note
