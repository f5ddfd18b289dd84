"""The adapter to captum's ``DeepLift`` explainers: bind our rules while they attribute.

captum, too, runs samples and references as the two halves of one batch; it hooks only modules of
exactly the types that it knows, so our atoms are left to our rules.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

from rewriter.adapters.automatic import LEFT_ALONE, Automatic, layer_of
from rewriter.adapters.guard import EXPLAINING, Given, guard_method, holds_atoms
from rewriter.adapters.layers import layer_called
from rewriter.adapters.on_import import EXPLAINERS
from rewriter.adapters.pairs import bound_rules
from rewriter.adapters.restore import as_found
from rewriter.adapters.stock_rules import is_plain
from rewriter.compiler.first_calls import prove_first, unwatched
from rewriter.extras import optional


def register_captum(*, automatic: bool | None = None) -> None:
    """Teach captum's ``DeepLift``, its ``Shap`` form and those for layers and neurons our atoms, now.

    ``import rewriter`` arranges this for whenever captum is imported, so there is no need to call it.

    Args:
        automatic: True, and from then on their ``attribute`` decomposes whatever PyTorch model the explainer
            was made for, with the values that ``rewriter.decompose(model)`` has; neither the model nor the
            explainer is changed. What captum explains right by itself is left to it, bit for bit. False, and
            ``attribute`` is captum's own again. None leaves it as it is, at first off. It holds for the whole
            process and all of its threads.

    Raises:
        MissingExtraError: if captum is not installed.

    Example:
        >>> import torch, warnings
        >>> warnings.simplefilter("ignore")  # captum's, of hooks
        >>> from captum.attr import DeepLift
        >>> from torch import nn
        >>> explainer = DeepLift(nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)))
        >>> register_captum(automatic=True)
        >>> x, baselines = torch.randn(2, 3), torch.randn(2, 3)
        >>> delta = explainer.attribute(x, baselines, target=0, return_convergence_delta=True)[1]
        >>> register_captum(automatic=False)
        >>> bool(delta.abs().max() < 1e-6)  # what the sum is off by
        True

    """
    for name in EXPLAINERS:
        teach(optional(name, "register_captum", "captum"))
    if automatic is not None:
        AUTOMATIC.on = bool(automatic)


def teach(module: ModuleType) -> None:
    """Guard the explainers of one of captum's modules."""
    for explainer in EXPLAINERS[module.__name__]:
        guard_method(getattr(module, explainer), "attribute", _attributing)


def _has_rule(module: nn.Module) -> bool:
    from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR

    return type(module) in SUPPORTED_NON_LINEAR and is_plain(module)


AUTOMATIC = Automatic("register_captum", _has_rule)


@contextmanager
def _attributing(given: Given) -> Iterator[Given]:
    explainer = given.owner
    bound = inspect.signature(type(explainer).attribute).bind_partial(explainer, *given.args, **given.kwargs)
    inputs = _as_tuple(bound.arguments.get("inputs"))
    args = (*inputs, *_as_tuple(bound.arguments.get("additional_forward_args")))
    if AUTOMATIC.takes(_model_of(explainer)):
        explainer = _decomposed(explainer, args)
        given = given._replace(owner=explainer)
    model = _model_of(explainer)
    if not holds_atoms(model):
        token = LEFT_ALONE.set(model)
        try:
            yield given
        finally:
            LEFT_ALONE.reset(token)
        return
    prove_first(model, args)
    to_input = any(bound.arguments.get(f"attribute_to_{what}_input") for what in ("layer", "neuron"))
    side, neuron = "input" if to_input else "output", bound.arguments.get("neuron_selector")
    layer = layer_called(model, getattr(explainer, "layer", None), side, neuron=neuron)
    with EXPLAINING, as_found(model), unwatched(), layer, bound_rules(model):
        yield given


def _model_of(explainer: Any) -> Any:
    # Those for neurons keep the model under the name of captum's other methods.
    return getattr(explainer, "model", None) or explainer.forward_func


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)


def _decomposed(explainer: Any, args: tuple[Any, ...]) -> Any:
    """Return an explainer of the decomposed model in all else alike, or the same if that is not needed."""
    model = _model_of(explainer)
    rewritten = AUTOMATIC.kept_for(explainer, model, args)
    if rewritten is None:
        return explainer
    other = copy.copy(explainer)
    for name, value in vars(explainer).items():
        if value is model:
            setattr(other, name, rewritten)
        elif name == "layer":
            other.layer = layer_of(rewritten, model, value)
        elif isinstance(value, list):
            # Of hooks, which it takes away when it is done.
            setattr(other, name, [])
    return other
