"""The adapter to stock ``shap.DeepExplainer``: bind our rules while it explains one of our models.

shap finds rules by class name in a table, stores what they need on the modules and cleans up only
after a success. That table is left alone: shap is kept from hooking our modules, one by one, for the time of
one ``shap_values`` call in which :func:`rewriter.adapters.pairs.bound_rules` binds the rules, after which
the model is as it was found. Models without a rewritten part get stock behaviour, untouched, and so does a
class of the user's that is called as one of ours. With ``register_shap(automatic=True)`` models are
decomposed when an explainer is made of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from passes.leaves import Atom, Layout
from rewriter.adapters.automatic import Automatic, layer_of
from rewriter.adapters.guard import EXPLAINING, Given, guard_method, holds_atoms
from rewriter.adapters.integers import integers_as_numbers
from rewriter.adapters.layers import handed_on, layer_called
from rewriter.adapters.pairs import bound_rules
from rewriter.adapters.restore import as_found
from rewriter.adapters.stock_rules import is_plain
from rewriter.compiler.first_calls import prove_first, unwatched
from rewriter.compiler.islands import islands_of
from rewriter.extras import optional


def register_shap(*, automatic: bool | None = None) -> None:
    """Teach shap's ``DeepExplainer`` our atoms, now; on request let it decompose models by itself.

    ``import rewriter`` arranges the former for whenever shap is imported, so there is no need to call it;
    it exists for those who reload shap or like to see it done. Calling it again changes nothing.

    Args:
        automatic: True, and from then on ``shap.DeepExplainer(model, background)``, and with
            ``(model, layer)``, decompose whatever PyTorch model they are given, with the values that
            ``rewriter.decompose(model)`` has; the model itself is not changed. What shap explains right by
            itself, every Keras model on TensorFlow among it, is left to it, bit for bit. False, and new
            explainers are stock shap's again, while those that were made keep what they have. None leaves it
            as it is, at first off. It holds for the whole process and all of its threads.

    Raises:
        MissingExtraError: if shap is not installed.

    Example:
        >>> import shap, torch
        >>> register_shap(automatic=True)
        >>> model, background = nn.Sequential(nn.Linear(3, 4), nn.Softmax(1)), torch.randn(5, 3)
        >>> explainer = shap.DeepExplainer(model, background)
        >>> register_shap(automatic=False)
        >>> x = torch.randn(2, 3)
        >>> gap = explainer.shap_values(x).sum(1) - (model(x).detach().numpy() - explainer.expected_value)
        >>> bool(abs(gap).max() < 1e-6)
        True

    """
    teach(optional("shap.explainers._deep.deep_pytorch", "register_shap", "shap"))
    if automatic is not None:
        AUTOMATIC.on = bool(automatic)


def teach(deep_pytorch: ModuleType) -> None:
    """Guard the explainer in the module where shap has it."""
    guard_method(deep_pytorch.PyTorchDeep, "__init__", _constructing)
    guard_method(deep_pytorch.PyTorchDeep, "shap_values", _explaining)


def _has_rule(module: nn.Module) -> bool:
    """Whether shap has a rule for a module of torch's, which it finds by the name of the class."""
    from shap.explainers._deep import deep_pytorch

    kind = type(module)
    rule = deep_pytorch.op_handler.get(kind.__name__)
    leaves_gradients = rule in (None, deep_pytorch.passthrough, deep_pytorch.linear_1d)
    return kind is getattr(nn, kind.__name__, None) and not leaves_gradients and is_plain(module)


AUTOMATIC = Automatic("register_shap", _has_rule)


@contextmanager
def _constructing(given: Given) -> Iterator[Given]:
    """Decompose a model if that was asked for; keep its mode: shap sets another for good."""
    model, data, given = _decomposed(given, **_named(given, "model", "data"))
    root, layer = model if isinstance(model, tuple) else (model, None)
    if not holds_atoms(root):
        yield given
        return
    prove_first(root, data)
    with EXPLAINING, as_found(root), unwatched(), layer_called(root, layer, "input", _inputs(data)):
        yield given


def _named(given: Given, *names: str) -> dict[str, Any]:
    """Return arguments by their names, None for one that is missing."""
    return dict.fromkeys(names) | dict(zip(names, given.args, strict=False)) | given.kwargs


def _decomposed(given: Given, model: Any, data: Any, **more: Any) -> tuple[Any, Any, Given]:
    """Return what shap is to explain, by what, and the call that says so."""
    root, layer = model if isinstance(model, tuple) and len(model) == 2 else (model, None)
    if not AUTOMATIC.takes(root):
        return model, data, given
    rewritten = AUTOMATIC.of(root, data if isinstance(data, list) else [data])
    if rewritten is None:
        return model, data, given
    model = rewritten if layer is None else (rewritten, layer_of(rewritten, root, layer))
    return model, data, given._replace(args=(), kwargs={"model": model, "data": data, **more})


@contextmanager
def _explaining(given: Given) -> Iterator[Given]:
    explainer = given.owner
    model = explainer.model
    if not holds_atoms(model):
        yield given
        return
    prove_first(model, _named(given, "X")["X"])
    with (
        EXPLAINING,
        as_found(model),
        unwatched(),
        layer_called(model, explainer.layer, "input", _inputs(explainer.data)),
        bound_rules(model.eval()),
        _gradients_left_alone(model, explainer.layer),
        integers_as_numbers(explainer),
    ):
        yield given


@contextmanager
def _gradients_left_alone(model: nn.Module, layer: nn.Module | None) -> Iterator[None]:
    """Keep shap from hooking the backward pass of modules whose gradients it is to leave as they are.

    Those are ours, the user's whose calls are given their rules while they run, and those for which shap has
    nothing to do: torch lets nobody write in place to what a module with such a hook takes or returns. The
    layer that is explained gets a hook that does nothing: it tells what the layer gets from what else is made
    of the same tensor. The caller restores the modules.
    """
    from shap.explainers._deep import deep_pytorch

    handlers = deep_pytorch.op_handler
    idle = (deep_pytorch.passthrough, deep_pytorch.linear_1d)
    islands = islands_of(model)
    for name, module in model.named_modules():
        ours = isinstance(module, Atom | Layout) or _runs_as_code(name, module, islands)
        if ours or _computes_nothing(module) or handlers.get(type(module).__name__) in idle:
            explained = module is layer
            hook = partial(_idle_hook, module) if explained else _no_hook
            object.__setattr__(module, "register_full_backward_hook", hook)
    yield


def _computes_nothing(module: nn.Module) -> bool:
    """Whether a module only has the name of a layer that is written out, or is called as one."""
    return type(module) is nn.Module or module.__dict__.get("forward") is handed_on


def _inputs(data: Any) -> int:
    """Return how many inputs a model has, as many of a layer's as shap has room for."""
    return len(data) if isinstance(data, list) else 1


def _runs_as_code(name: str, module: nn.Module, islands: list[str]) -> bool:
    """Whether a module is the user's, and its calls are given their rules while they run."""
    inside = any(not island or f"{name}.".startswith(f"{island}.") for island in islands)
    return inside and not type(module).__module__.startswith("torch.")


def _no_hook(_: Any) -> RemovableHandle:
    return RemovableHandle(OrderedDict())


def _idle_hook(module: nn.Module, _: Any) -> RemovableHandle:
    return type(module).register_full_backward_hook(module, lambda *_: None)
