"""What users give: models, samples and references, brought into one form and checked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, Union

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from passes.errors import InputError, RewriteError
from passes.frontends.exported import exported_module, is_exported
from rewriter.keras.installed import is_layer
from rewriter.places import describe

#: What is taken for a model.
Model: TypeAlias = Union[nn.Module, "torch.export.ExportedProgram"]
# Attributions in them are off by 1e-3 and more of the output.
_IMPRECISE = (torch.float16, torch.bfloat16)


def as_module(model: object, what: str = "") -> nn.Module:
    """Return a module, also for a program of ``torch.export``.

    Args:
        model: what was given.
        what: name of the argument for error messages.

    Raises:
        RewriteError: for anything else, and for parameters that have no shape yet.

    Example:
        >>> as_module(torch.export.export(nn.Linear(2, 3), (torch.ones(1, 2),)))(torch.ones(1, 2)).shape
        torch.Size([1, 3])

    """
    if is_exported(model):
        return exported_module(model)
    if not isinstance(model, nn.Module):
        where = f"{what}: " if what else ""
        advice = "; rewriter.keras.to_torch(model) makes one of a model of Keras" if is_layer(model) else ""
        raise RewriteError(f"{where}expected a torch.nn.Module, got {type(model).__name__}{advice}")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise RewriteError(f"{name} has no shape yet: call the model once, then go on")
    return model


def selecting(output: Any) -> Callable[[Any], Any]:
    """Return what picks an output by key, index or function.

    Raises:
        RewriteError: when it is called, if there is no such key or index.

    Example:
        >>> selecting("y")({"y": 2}), selecting(None)(3)
        (2, 3)

    """
    if output is None:
        return _itself
    return output if callable(output) else partial(_item, output)


def _itself(output: Any) -> Any:
    return output


def _item(key: Any, output: Any) -> Any:
    try:
        # Of a tensor a text would be taken for its letters.
        if not (isinstance(output, Tensor) and isinstance(key, str)):
            return output[key]
    except (LookupError, TypeError):
        pass
    raise RewriteError(
        f"output: expected what the model returns to have {key!r}, got {describe(output)}; pass a key or an "
        "index of that, a function of it, or leave output= out where it is one tensor"
    )


def as_inputs(given: Any, like: Tensor | list[Tensor] | None, what: str) -> list[Tensor]:
    """Return a list of tensors on the model's device; arrays and data frames get a dtype that fits.

    Args:
        given: one tensor, array or data frame, or a list of them.
        like: a parameter of the model, whose dtype floating point arrays get; or the background, whose
            dtypes all arrays get.
        what: name of the argument for error messages.

    Raises:
        InputError: for anything else, numbers that are not finite, half precision or complex numbers.

    Example:
        >>> as_inputs([[1.0, 2.0]], torch.zeros(1), "X")
        Traceback (most recent call last):
        passes.errors.InputError: X, input 0: expected a Tensor or an array, got list; pass torch.tensor of it

    """
    parts = list(given) if isinstance(given, list | tuple) else [given]
    if isinstance(like, list) and len(like) != len(parts):
        raise InputError(f"{what}: expected {len(like)} inputs like the background, got {len(parts)}")
    found = []
    for k, part in enumerate(parts):
        name = f"{what}, input {k}"
        tensor = part.detach() if isinstance(part, Tensor) else _from_array(part, name)
        own = like[k] if isinstance(like, list) else like
        if own is not None and not isinstance(part, Tensor):
            fits = own.is_floating_point() and (tensor.is_floating_point() or isinstance(like, list))
            tensor = tensor.to(own.dtype) if fits and not tensor.is_complex() else tensor
        found.append(_checked(tensor, own, name))
    return found


def _from_array(part: Any, what: str) -> Tensor:
    array = part.to_numpy() if hasattr(part, "to_numpy") else part
    if not hasattr(array, "__array__"):
        raise InputError(
            f"{what}: expected a Tensor or an array, got {type(part).__name__}; pass torch.tensor of it"
        )
    try:
        # A copy: what belongs to a data frame cannot be written to.
        return torch.tensor(array)
    except TypeError:
        raise InputError(
            f"{what}: expected numbers, got a {type(part).__name__} of {array.dtype}; encode text and "
            "categories as numbers"
        ) from None


def _checked(tensor: Tensor, like: Tensor | None, what: str) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise InputError(f"{what}: expected a dense tensor with data, got {_kind(tensor)}; pass a dense copy")
    if tensor.dtype in _IMPRECISE or tensor.is_complex():
        raise InputError(
            f"{what}: expected float32, float64 or integers, got {tensor.dtype}; attributions are "
            "differences, which need full precision: explain copy.deepcopy(model).float()"
        )
    if like is not None:
        tensor = tensor.to(like.device)
    if tensor.dim() == 0:
        raise InputError(f"{what}: expected the batch in dimension 0, got a number")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        row = int((~tensor.isfinite()).flatten(1).any(1).nonzero()[0]) if tensor.dim() > 1 else 0
        raise InputError(
            f"{what}: expected finite numbers, got NaN or infinity, first in row {row}; fill in what is "
            "missing, as torch.nan_to_num does, and pass x.isnan() as an input of its own where the model "
            "asks for it"
        )
    return tensor


def _kind(tensor: Tensor) -> str:
    return "a meta tensor" if tensor.is_meta else f"{tensor.layout} of {tensor.dtype}"


def check_like(inputs: list[Tensor], data: list[Tensor], what: str, samples: int | None = None) -> None:
    """Raise InputError unless ``inputs`` fit the background.

    Args:
        inputs: what was given.
        data: the background.
        what: name of the argument for error messages.
        samples: number of samples, where each has references of its own.

    """
    lead = 1 if samples is None else 2
    for k, (tensor, reference) in enumerate(zip(inputs, data, strict=True)):
        if tensor.shape[lead:] != reference.shape[1:]:
            raise InputError(
                f"{what}, input {k}: expected rows of shape {tuple(reference.shape[1:])} like the "
                f"background, got {tuple(tensor.shape[lead:])}"
            )
        if tensor.dtype != reference.dtype:
            raise InputError(
                f"{what}, input {k}: expected dtype {reference.dtype} like the background, got {tensor.dtype}"
            )
        if tensor.shape[:lead] != inputs[0].shape[:lead]:
            raise InputError(
                f"{what}, input {k}: expected {inputs[0].shape[0]} rows like input 0, got {tensor.shape[0]}"
            )
        if samples is not None and (tensor.shape[0] != samples or tensor.shape[1] == 0):
            raise InputError(
                f"{what}, input {k}: expected ({samples}, references, ...), references of each sample, got "
                f"shape {tuple(tensor.shape)}"
            )
