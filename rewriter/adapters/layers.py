"""Have a decomposed model call the layer that somebody else's explainer has hooks on.

Most layers of the user's model are written out in its graph, and only a module that computes nothing has
their name. For the time of an explanation it is called where the layer begins, or ends. Where the layer's own
code runs, it runs inside of such a call. Either way hooks see tensors with the batch in dimension 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from passes.errors import RewriteError
from passes.graph.boundary import insert_boundary
from passes.graph.graph_module import renamed
from passes.graph.layers import LayerBoundary, layer_calls
from passes.user_code.clone import clone_structure
from passes.user_code.hooks import replaced_forwards
from passes.user_code.randomness import random_state_kept
from rewriter.adapters.layer_run import LayerRun, explained_in, more_than_once

_BOUNDARY = "rewriter_layer_boundary"
# The layer that is called for an explanation under way in this thread: some explainers call others.
_watched: ContextVar[nn.Module | None] = ContextVar("rewriter_watched", default=None)


@contextmanager
def layer_called(
    model: nn.Module, layer: nn.Module | None, side: str, most: int | None = None, neuron: Any = None
) -> Iterator[None]:
    """While active, each run of ``model`` calls ``layer`` once with what it takes, or gives, as tensors.

    What an ``nn.Embedding`` takes are integers, so that it is called with what it gives.

    Args:
        model: decomposed; its forward, and the layer's, are other ones for that time.
        layer: a module of it, by the name that it has in the user's model; None for no layer.
        side: ``"input"`` or ``"output"``.
        most: so many tensors at most; None for any number.
        neuron: the index of one in a row that is asked for; None, or a function, for what needs no check.

    Raises:
        RewriteError: naming the layer, if it runs more than once, hands on what it takes, works in place on
            what is asked for, or takes or gives what has no batch of tensors in dimension 0.

    Example:
        >>> from rewriter import decompose
        >>> import torch
        >>> model = decompose(nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 1)))
        >>> norm = model.get_submodule("0")
        >>> handle = norm.register_forward_hook(lambda module, args, output: print(args[0].shape))
        >>> with layer_called(model, norm, "input"):
        ...     _ = model(torch.ones(3, 2))
        torch.Size([3, 2])

    """
    if layer is None or layer is model or layer is _watched.get():
        yield
        return
    name = next((name for name, module in model.named_modules() if module is layer), None)
    if name is None:
        raise RewriteError(
            f"the {type(layer).__name__} is not a part of the decomposed model; take the layer from there: "
            "decomposed.get_submodule(name)"
        )
    if isinstance(layer, torch.jit.ScriptModule):
        raise RewriteError(
            f"{name}: is scripted, and takes no hooks, by which shap and captum look at a layer; explain it "
            "with rewriter.DeepExplainer, or decompose the model before it is scripted"
        )
    side = "output" if isinstance(layer, nn.Embedding) else side
    copy = clone_structure(model)
    run = LayerRun(layer, name, side, most, partial(_seen, copy, name, side), neuron)
    forwards: list[tuple[nn.Module, Callable[..., Any]]]
    if _has_boundary(model, layer, name):
        forwards = [
            (layer, handed_on),
            (model, partial(run.start, _with_boundary(model, name, side, run.through))),
        ]
    else:
        forwards = [(layer, partial(run.forward, layer.forward)), (model, partial(run.start, model.forward))]
        object.__setattr__(layer, "_call_impl", partial(run.around, layer))
    token = _watched.set(layer)
    try:
        with replaced_forwards(forwards):
            yield
    except RuntimeError as error:
        if "appears to not have been used in the graph" not in str(error):
            raise
        raise RewriteError(
            f"{name}: what is explained does not depend on its {side}; explain another layer"
        ) from error
    finally:
        _watched.reset(token)
        layer.__dict__.pop("_call_impl", None)


def _has_boundary(model: nn.Module, layer: nn.Module, name: str) -> bool:
    """Whether a layer is written out, or, as an embedding, called where its hooks see what it gives."""
    calls = layer_calls(model)
    if name not in calls:
        return False
    assert isinstance(model, fx.GraphModule)
    if calls[name] is None:
        raise more_than_once(name)
    called = any(node.op == "call_module" and node.target == name for node in model.graph.nodes)
    return isinstance(layer, nn.Embedding) or not called


def _with_boundary(
    model: nn.Module, name: str, side: str, through: Callable[[tuple[Any, ...]], tuple[Any, ...]]
) -> fx.GraphModule:
    """Return the model's graph, with its own modules, in which values go through a function."""
    assert isinstance(model, fx.GraphModule)
    call = layer_calls(model)[name]
    assert call is not None
    boundary = LayerBoundary(through)
    graph = renamed(model.graph, [node.name for node in model.graph.nodes])
    try:
        insert_boundary(graph, call, side, _BOUNDARY, boundary)
    except RewriteError as error:
        raise RewriteError(f"{name}: {error}") from None
    targets = {str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")}
    parts = {target: _attribute(model, target) for target in targets - {_BOUNDARY}}
    if name in parts:
        # It is the boundary that calls the layer.
        parts[name] = clone_structure(parts[name])
    return fx.GraphModule(parts | {_BOUNDARY: boundary}, graph)


def _attribute(model: nn.Module, target: str) -> Any:
    owner, _, name = target.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _seen(copy: nn.Module, name: str, side: str, args: Any, kwargs: Any) -> list[Tensor]:
    """Return what a layer takes, or gives, in a run of a copy of the model."""
    found: list[Tensor] = []

    def note(values: Any) -> Any:
        found.extend(each.clone() for each in explained_in(values))
        return values

    layer = copy.get_submodule(name)
    with torch.no_grad(), random_state_kept():
        if _has_boundary(copy, layer, name):
            _with_boundary(copy, name, side, note)(*args, **kwargs)
            return found
        handle = (
            layer.register_forward_pre_hook(lambda _, *taken: _drop(note(taken)), with_kwargs=True)
            if side == "input"
            else layer.register_forward_hook(lambda *call: _drop(note(call[2])))
        )
        try:
            copy(*args, **kwargs)
        finally:
            handle.remove()
    return found


def _drop(_: Any) -> None:
    """Return what leaves a call as it is."""


def handed_on(*values: Any) -> Any:
    """Stand for a layer that is written out where it is called."""
    return values if len(values) > 1 else values[0]
