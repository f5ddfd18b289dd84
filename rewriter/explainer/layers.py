"""Find layers of the user's model in a linked copy: to cut it there, or to explain what one gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor, fx, nn
from torch.overrides import BaseTorchFunctionMode

from passes.errors import RewriteError
from passes.graph.boundary import insert_boundary
from passes.graph.graph_module import Lowered
from passes.graph.layers import LayerBoundary, layer_calls
from passes.graph.leaf_functions import leaf
from passes.graph.names import free_name
from passes.lowering.on_copies import CallOnCopies
from passes.user_code.hooks import set_forward
from passes.user_code.structure import tensors_in
from passes.user_code.twin import wrap_scripted
from rewriter.engine.linked_modules import give_gates
from rewriter.explainer.cut import Cut, Side

Forward = Callable[..., Any]
# What layers gave in the run under way in this thread, where that is explained.
_given: ContextVar[list[Tensor] | None] = ContextVar("rewriter_given", default=None)


def names_of(model: nn.Module, layer: nn.Module) -> list[str]:
    """Return the names that a layer has in a model, as what is made of the model calls it.

    Raises:
        RewriteError: if it is not a part of the model.

    Example:
        >>> act = nn.Tanh()
        >>> names_of(nn.Sequential(act, nn.Linear(2, 2), act), act)
        ['0', '2']

    """
    found = [name for name, module in model.named_modules(remove_duplicate=False) if module is layer]
    if not found:
        raise RewriteError(
            f"the {type(layer).__name__} is not a part of the model; take a layer that "
            "model.get_submodule(name) finds"
        )
    # What torch.compile wraps gives way to what it was made of.
    return [".".join(part for part in name.split(".") if part != "_orig_mod") for name in found]


def place_cut(copy: nn.Module, names: Sequence[str], cut: Cut) -> None:
    """Cut a linked copy at a layer.

    Args:
        copy: changed.
        names: those that the layer has in the user's model.
        cut: what is to get what it takes, or gives.

    Raises:
        RewriteError: if the copy does not call the layer, or more than once.

    """
    name = _called(copy, names)
    module = dict(copy.named_modules()).get(name)
    if isinstance(module, nn.Embedding):
        # What goes into it are integers.
        cut.side = "output"
    if module is not None and cut.side == "output":
        give_gates(module)
    if name in layer_calls(copy):
        _insert(copy, name, cut.side, cut)
    else:
        assert module is not None
        set_forward(module, partial(_CUTS[cut.side], module.forward, cut))


def _cut_input(plain: Forward, cut: Cut, *args: Any, **kwargs: Any) -> Any:
    call = CallOnCopies()

    def explained(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = cut((args, kwargs))
        return call.inside(plain, *args, **kwargs)

    return call.around(explained, *args, **kwargs)


def _cut_output(plain: Forward, cut: Cut, *args: Any, **kwargs: Any) -> Any:
    call = CallOnCopies()
    return call.around(lambda *args, **kwargs: cut(call.inside(plain, *args, **kwargs)), *args, **kwargs)


_CUTS: dict[Side, Callable[..., Any]] = {"input": _cut_input, "output": _cut_output}


def return_output_of(copy: nn.Module, names: Sequence[str]) -> None:
    """Let a model return what a layer gives; of several tensors the first.

    Args:
        copy: changed; nobody else has it.
        names: those that the layer has in the user's model.

    Raises:
        RewriteError: if the copy does not call the layer, or more than once.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Flatten(), nn.Tanh())
        >>> return_output_of(model, ["0"])
        >>> model(torch.ones(1, 1, 2))
        tensor([[1., 1.]])

    """
    wrap_scripted(copy)
    name = _called(copy, names)
    give_gates(copy.get_submodule(name))
    if name in layer_calls(copy):
        _return(copy, name)
        return
    if name:
        module = copy.get_submodule(name)
        set_forward(module, partial(_noting, module.forward))
    if isinstance(copy, Lowered):
        # Whoever goes through its nodes does not call its forward.
        _return_noted(copy, name)
    else:
        set_forward(copy, partial(_output, copy.forward, name))


@leaf
def first_tensor(value: Any) -> Tensor:
    """Return a copy of the first tensor in a value: what follows may write in place.

    Raises:
        RewriteError: if there is none.

    Example:
        >>> import torch
        >>> first_tensor(((torch.ones(1), torch.zeros(1)), None))
        tensor([1.])

    """
    found = tensors_in(value)
    if not found:
        raise RewriteError(
            f"a layer gives {type(value).__name__}, of which nothing can be explained; as output=... take a "
            "layer that gives a tensor"
        )
    return found[0].clone()


def _noting(plain: Forward, *args: Any, **kwargs: Any) -> Any:
    result = plain(*args, **kwargs)
    given = _given.get()
    if given is not None:
        given.append(first_tensor(result))
    return result


def _output(plain: Forward, name: str, *args: Any, **kwargs: Any) -> Tensor:
    found: list[Tensor] = []
    token = _given.set(found)
    try:
        # Under a mode torch runs its transformers layer by layer.
        with BaseTorchFunctionMode():
            result = plain(*args, **kwargs)
    finally:
        _given.reset(token)
    return _only(name, [first_tensor(result)] if not name else found)


def _only(name: str, found: list[Tensor]) -> Tensor:
    if len(found) != 1:
        what = "runs more than once" if found else "is not reached"
        raise RewriteError(f"{name}: {what}; as output=... take a layer that runs once")
    return found[0]


def _return_noted(copy: Lowered, name: str) -> None:
    """Let a graph return what a layer in code that it calls gives."""
    begin = next(node for node in copy.graph.nodes if node.op != "placeholder")
    with copy.graph.inserting_before(begin):
        noted = copy.graph.call_function(begin_noting, ())
    output = next(iter(reversed(copy.graph.nodes)))
    with copy.graph.inserting_before(output):
        given = copy.graph.call_function(end_noting, (name, noted, output.args[0]))
    output.args = (given,)
    copy.recompile()


def begin_noting() -> list[Tensor]:
    """Return where a layer is to note what it gives."""
    found: list[Tensor] = []
    _given.set(found)
    return found


def end_noting(name: str, found: list[Tensor], _: Any) -> Tensor:
    """Return what the layer of a name has noted, once all that a model runs has run.

    Raises:
        RewriteError: unless that is one tensor.

    """
    _given.set(None)
    return _only(name, found)


def is_in_graph(copy: nn.Module, names: Sequence[str]) -> bool:
    """Whether a layer was written out in a graph, or is called by one."""
    return not layer_calls(copy).keys().isdisjoint(names)


def _called(copy: nn.Module, names: Sequence[str]) -> str:
    """Return the name by which a copy calls a layer."""
    calls = layer_calls(copy)
    modules = dict(copy.named_modules())
    name = next((each for each in names if each in calls), None) or next(
        (each for each in names if each in modules), None
    )
    if name is None:
        raise RewriteError(
            f"{names[0]}: is not reached, so there is nothing to explain; explain a layer that the model "
            "calls when it runs"
        )
    if name in calls and calls[name] is None:
        raise RewriteError(
            f"{name}: runs more than once, and it cannot be told which of the calls is meant; explain a "
            "layer that runs once, or give each call a module of its own"
        )
    return name


def _insert(copy: nn.Module, name: str, side: Side, cut: Cut) -> None:
    assert isinstance(copy, fx.GraphModule)
    call = layer_calls(copy)[name]
    assert call is not None
    boundary = LayerBoundary(cut)
    path = free_name(copy, "cut_at_layer")
    copy.add_module(path, boundary)
    try:
        insert_boundary(copy.graph, call, side, path, boundary)
    except RewriteError as error:
        raise RewriteError(f"{name}: {error}") from None
    copy.recompile()


def _return(copy: nn.Module, name: str) -> None:
    assert isinstance(copy, fx.GraphModule)
    call = layer_calls(copy)[name]
    assert call is not None
    nodes = {node.name: node for node in copy.graph.nodes}
    end, outputs = call[1], call[3]
    if not outputs or not outputs[0]:
        raise RewriteError(
            f"{name}: nothing in the model uses the first of what it gives; take another layer"
        )
    with copy.graph.inserting_before(nodes[end].next):
        given = copy.graph.call_function(first_tensor, (nodes[outputs[0]],))
    next(iter(reversed(copy.graph.nodes))).args = (given,)
    copy.recompile()
