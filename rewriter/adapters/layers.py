"""Have a decomposed model call the layer that somebody else's explainer has hooks on.

Most layers of the user's model are written out in its graph, and only a module that computes nothing has
their name. For the time of an explanation it is called where the layer begins, or ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from passes.errors import RewriteError
from passes.graph.boundary import LayerBoundary, insert_boundary
from passes.graph.graph_module import renamed
from passes.graph.layers import layer_calls
from passes.user_code.clone import clone_structure
from passes.user_code.hooks import replaced_forwards
from passes.user_code.structure import tensors_in

_BOUNDARY = "rewriter_layer_boundary"
# The layer that is called for an explanation under way in this thread: some explainers call others.
_watched: ContextVar[nn.Module | None] = ContextVar("rewriter_watched", default=None)


@contextmanager
def layer_called(
    model: nn.Module, layer: nn.Module | None, side: str, most: int | None = None
) -> Iterator[None]:
    """While active, each run of ``model`` calls ``layer`` once with what it takes, or gives, as tensors.

    What an ``nn.Embedding`` takes are integers, so that it is called with what it gives.

    Args:
        model: decomposed; its forward, and the layer's, are other ones for that time.
        layer: a module of it, by the name that it has in the user's model; None for no layer.
        side: ``"input"`` or ``"output"``.
        most: so many tensors at most; None for any number.

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
    looks_up = isinstance(layer, nn.Embedding) and side == "input" and name in layer_calls(model)
    run = _Run(name, "output" if looks_up else side, most, id(layer))
    handles: list[RemovableHandle] = []
    forwards: list[tuple[nn.Module, Callable[..., Any]]]
    if looks_up or _is_written_out(model, name):
        forwards = [(layer, handed_on), (model, partial(run.start, _with_boundary(model, layer, run)))]
    else:
        forwards = [(model, partial(run.start, model.forward))]
        handles = [layer.register_forward_pre_hook(run.entered), layer.register_forward_hook(run.left)]
    token = _watched.set(layer)
    try:
        with replaced_forwards(forwards):
            yield
    finally:
        _watched.reset(token)
        for handle in handles:
            handle.remove()


class _Run:
    """One run of a model in which a layer is watched.

    Args:
        name: of the layer.
        side: what of it is explained.
        most: so many tensors at most.
        watched: the ``id`` of the layer; a copy of the model has another.

    """

    def __init__(self, name: str, side: str, most: int | None, watched: int) -> None:
        self.name = name
        self.side = side
        self.most = most
        self.watched = watched
        self.rows = 0
        self.calls = 0
        self.taken: list[tuple[Tensor, int]] = []

    def start(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        self.rows = next((len(each) for each in tensors_in((args, kwargs)) if each.dim()), 0)
        self.calls = 0
        return plain(*args, **kwargs)

    def entered(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Check a call of the layer."""
        if id(module) != self.watched:
            return
        self.calls += 1
        if self.calls > 1:
            raise _more_than_once(self.name)
        if self.side == "input":
            self.check(args)
            self.taken = [(each, each._version) for each in tensors_in(args)]

    def left(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Check what the layer did."""
        if id(module) != self.watched:
            return
        taken, self.taken = self.taken, []
        if self.side == "output":
            self.check(output if isinstance(output, tuple) else (output,))
        elif any(each._version != version for each, version in taken):
            raise RewriteError(
                f"{self.name}: works in place, and has overwritten what it took; explain it with "
                "rewriter.DeepExplainer, or make it without inplace=True"
            )

    def check(self, values: tuple[Any, ...]) -> None:
        """Raise RewriteError unless all are tensors with the rows of the batch first."""
        wrong = [_described(each) for each in values if not self._has_rows(each)]
        if self.most is not None and len(values) > self.most:
            wrong = [_described(each) for each in values]
        if wrong or not values:
            most = "" if self.most is None else f", at most {self.most}"
            raise RewriteError(
                f"{self.name}: its {self.side} is {', '.join(wrong) or 'no tensor'}; shap and captum explain "
                f"floating point tensors with the batch, of {self.rows} here, in dimension 0{most}: explain "
                "it with rewriter.DeepExplainer"
            )

    def _has_rows(self, value: Any) -> bool:
        return (
            isinstance(value, Tensor)
            and value.is_floating_point()
            and value.dim() > 0
            and value.shape[0] == self.rows
        )


def _described(value: Any) -> str:
    return (
        f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    )


def _is_written_out(model: nn.Module, name: str) -> bool:
    calls = layer_calls(model)
    if name not in calls:
        return False
    assert isinstance(model, fx.GraphModule)
    if calls[name] is None:
        raise _more_than_once(name)
    return not any(node.op == "call_module" and node.target == name for node in model.graph.nodes)


def _more_than_once(name: str) -> RewriteError:
    return RewriteError(
        f"{name}: runs more than once, and it cannot be told which of the calls is meant; explain a layer "
        "that runs once, or give each call a module of its own"
    )


def _with_boundary(model: nn.Module, layer: nn.Module, run: _Run) -> fx.GraphModule:
    """Return the model's graph, with its own modules, in which the layer is called."""
    assert isinstance(model, fx.GraphModule)
    call = layer_calls(model)[run.name]
    assert call is not None
    boundary = LayerBoundary(partial(_through, layer, run))
    graph = renamed(model.graph, [node.name for node in model.graph.nodes])
    try:
        insert_boundary(graph, call, run.side, _BOUNDARY, boundary)
    except RewriteError as error:
        raise RewriteError(f"{run.name}: {error}") from None
    targets = {str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")}
    parts = {target: _attribute(model, target) for target in targets - {_BOUNDARY}}
    if run.name in parts:
        # It is the boundary that calls the layer.
        parts[run.name] = clone_structure(layer)
    return fx.GraphModule(parts | {_BOUNDARY: boundary}, graph)


def _attribute(model: nn.Module, target: str) -> Any:
    owner, _, name = target.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _through(layer: nn.Module, run: _Run, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Let the floating point tensors go through the layer, each once."""
    packed = [each for each in pytree.tree_leaves(values, is_leaf=_is_packed) if _is_packed(each)]
    found = {id(each): each for each in tensors_in(values) if each.is_floating_point()}
    # Views of their own: what else is made of these tensors does not come through the layer.
    tensors = tuple(each.view_as(each) for each in found.values())
    run.check((*packed, *tensors))
    given = layer(*tensors)
    new = dict(zip(found, given if isinstance(given, tuple) else (given,), strict=True))
    return pytree.tree_map_only(Tensor, lambda each: new.get(id(each), each), values)  # type: ignore[no-any-return]


def _is_packed(value: Any) -> bool:
    return isinstance(value, PackedSequence)


def handed_on(*values: Any) -> Any:
    """Stand for a layer that is written out where it is called."""
    return values if len(values) > 1 else values[0]
