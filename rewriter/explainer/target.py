"""Choose what is explained: a part of the outputs, and with respect to the input of which module."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from passes.errors import RewriteError
from passes.user_code.hooks import set_forward
from rewriter.compiler.decompose import lowered
from rewriter.engine.attribution import Target
from rewriter.engine.linked_modules import linked_copy
from rewriter.engine.tape import Tape, current
from rewriter.engine.weights import SharedWeights
from rewriter.inputs import Model, as_module


def linked_target(
    model: Model | tuple[nn.Module, nn.Module],
    output: Callable[[Any], Tensor] | str | int | None,
    code: str | None = None,
) -> Target:
    """Decompose a model, make a linked copy, and remember what of it is to be explained.

    Args:
        model: a model, or a model and the module whose inputs receive the attributions.
        output: key, index or function that picks the output.
        code: why the model's own code is to run, with rewritten layers, instead of a graph.

    Raises:
        RewriteError: if the model cannot be rewritten, or the module is not a part of it.

    Example:
        >>> import torch
        >>> linked_target(nn.GRU(3, 2), 0).run([torch.zeros(4, 5, 3)]).shape
        torch.Size([4, 5, 2])

    """
    given, layer = model if isinstance(model, tuple) else (model, None)
    root = as_module(given)
    rewritten = lowered(root, code)
    copy = linked_copy(rewritten)
    _check_tensors(copy)
    weights = SharedWeights(root, copy)
    select = selecting(output)
    if layer is None:
        return Target(copy, weights, select, tokens=True, code=code, rewritten=rewritten)
    names = [name for name, module in root.named_modules() if module is layer]
    if not names:
        raise RewriteError(f"the {type(layer).__name__} is not a part of the model")
    # A rewritten layer takes its input in at its begin.
    found = [
        module
        for name in names
        for path in (f"{name}.begin".lstrip("."), name)
        if (module := dict(copy.named_modules()).get(path)) is not None
    ]
    if not found:
        raise RewriteError(f"{names[0]}: became part of the graph; explain the input of a module below it")
    forward = _embedded_forward if isinstance(found[0], nn.Embedding) else _interim_forward
    set_forward(found[0], partial(forward, found[0].forward, names[0]))
    return Target(copy, weights, select, names[0], code=code, rewritten=rewritten)


def selecting(output: Callable[[Any], Tensor] | str | int | None) -> Callable[[Any], Any]:
    """Return what picks an output by key, index or function.

    Example:
        >>> selecting("y")({"y": 2}), selecting(None)(3)
        (2, 3)

    """
    if output is None:
        return _itself
    return output if callable(output) else operator.itemgetter(output)


def _check_tensors(copy: nn.Module) -> None:
    for name, tensor in (*copy.named_parameters(), *copy.named_buffers()):
        if tensor.is_meta:
            raise RewriteError(f"{name}: a meta tensor has no numbers; load the weights first")
        if tensor.is_inference():
            raise RewriteError(
                f"{name}: made under torch.inference_mode(), so autograd cannot use it; make or load the "
                "model outside, and only run it there"
            )


def _itself(output: Any) -> Any:
    return output


def _interim_forward(plain: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    """Cut the graph in front of a module; what varies is its first argument."""
    tape = current()
    if tape is None:
        return plain(*args, **kwargs)
    if args:
        return plain(_cut(tape, name, args[0]), *args[1:], **kwargs)
    first = next(iter(kwargs))
    return plain(**kwargs | {first: _cut(tape, name, kwargs[first])})


def _embedded_forward(plain: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    """Cut the graph behind an embedding: what goes into it are integers."""
    tape, found = current(), plain(*args, **kwargs)
    return found if tape is None else _cut(tape, name, found)


def _cut(tape: Tape, name: str, given: Any) -> Tensor:
    if not isinstance(given, Tensor):
        raise RewriteError(
            f"{name}: takes a {type(given).__name__}, of which nothing can be explained; explain the module "
            "before it, or an embedding, whose output is explained"
        )
    value: Tensor = given
    if tape.pairing is None:
        if tape.inputs:
            raise RewriteError(f"{name}: runs more than once; its inputs cannot be explained")
        tape.inputs = [value.detach()]
        if tape.marked is not None:
            value = value.clone()
            value[1] += tape.mark
        return value
    pairing = tape.pairing
    counts = pairing.samples, pairing.references * (pairing.samples if pairing.own else 1)
    if (value.shape[0], tape.inputs[0].shape[0]) != counts:
        raise RewriteError(
            f"{name}: expected an input with the batch of {counts[0]} samples in dimension 0, got shape "
            f"{tuple(value.shape)}; explain the input of a module that gets the batch first"
        )
    tape.leaves = [value.detach().clone().requires_grad_()]
    return tape.leaves[0].clone()
