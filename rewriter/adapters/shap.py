"""The adapter to stock ``shap.DeepExplainer``: bind our rules while it explains one of our models.

shap finds rules by class name in a table, stores what they need on the modules and cleans up only
after a success. That table is left alone: shap is kept from hooking our modules, one by one, for the time of
one ``shap_values`` call in which :func:`rewriter.adapters.pairs.bound_rules` binds the rules, after which
the model is as it was found. Models without a rewritten part get stock behaviour, untouched, and so does a
class of the user's that is called as one of ours.
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
from rewriter.adapters.guard import EXPLAINING, guard_method, holds_atoms
from rewriter.adapters.integers import integers_as_numbers
from rewriter.adapters.layers import handed_on, layer_called
from rewriter.adapters.pairs import bound_rules
from rewriter.adapters.restore import as_found
from rewriter.compiler.first_calls import prove_first, unwatched
from rewriter.compiler.islands import islands_of


def register_shap() -> None:
    """Teach shap's ``DeepExplainer`` our atoms, now.

    ``import rewriter`` arranges this for whenever shap is imported, so there is no need to call it;
    it exists for those who reload shap or like to see it done. Calling it again changes nothing.

    Raises:
        ImportError: if shap is not installed.

    Example:
        >>> register_shap()

    """
    from shap.explainers._deep import deep_pytorch

    teach(deep_pytorch)


def teach(deep_pytorch: ModuleType) -> None:
    """Guard the explainer in the module where shap has it."""
    guard_method(deep_pytorch.PyTorchDeep, "__init__", _constructing)
    guard_method(deep_pytorch.PyTorchDeep, "shap_values", _explaining)


@contextmanager
def _constructing(_: Any, model: Any, data: Any = None, *args: Any, **kwargs: Any) -> Iterator[None]:
    """Shap sets evaluation mode for good when an explainer is made."""
    root, layer = model if isinstance(model, tuple) else (model, None)
    if not holds_atoms(root):
        yield
        return
    prove_first(root, data)
    with EXPLAINING, as_found(root), unwatched(), layer_called(root, layer, "input", _inputs(data)):
        yield


@contextmanager
def _explaining(explainer: Any, X: Any = None, *args: Any, **kwargs: Any) -> Iterator[None]:
    model = explainer.model
    if not holds_atoms(model):
        yield
        return
    prove_first(model, X)
    with (
        EXPLAINING,
        as_found(model),
        unwatched(),
        layer_called(model, explainer.layer, "input", _inputs(explainer.data)),
        bound_rules(model.eval()),
        _gradients_left_alone(model, explainer.layer),
        integers_as_numbers(explainer),
    ):
        yield


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
