"""The adapter to stock ``shap.DeepExplainer``: bind our rules while it explains one of our models.

shap finds rules by class name in a table, stores what they need on the modules and cleans up only
after a success. So our entries in that table say "nothing to do"; the rules themselves are bound by
:func:`rewriter._pairs.bound_rules` for the time of one ``shap_values`` call, after which the model is
as it was found. Models without a rewritten part get stock behaviour, untouched.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from passes.attention_layout import AttentionBegin, AttentionEnd, CloseRows, MaskScores
from passes.embedded import EmbeddingOutput
from passes.exported import ExpectLike
from passes.layout import CellBegin, CellEnd, SequenceBegin, SequenceDropout, SequenceEnd
from passes.transformer import AdditiveMask, SameBatch
from passes.unroll import ExpectSteps
from rewriter._adapt import EXPLAINING, guard_method, holds_atoms
from rewriter._integers import integers_as_numbers
from rewriter._islands import islands_of
from rewriter._multipliers import RULES
from rewriter._pairs import bound_rules
from rewriter._pulls import BOUND
from rewriter._restore import as_found


def register_shap() -> None:
    """Teach shap's ``DeepExplainer`` our atoms, now.

    ``import rewriter`` arranges this for whenever shap is imported, so there is no need to call it;
    it exists for those who reload shap or like to see it done. Calling it again changes nothing.

    Raises:
        ImportError: if shap is not installed.

    Example:
        >>> register_shap()
        >>> from shap.explainers._deep.deep_pytorch import op_handler
        >>> op_handler["Mul"].__name__
        'passthrough'

    """
    from shap.explainers._deep import deep_pytorch

    teach(deep_pytorch)


def teach(deep_pytorch: ModuleType) -> None:
    """Register with the module in which shap keeps its rules."""
    for leaf in (
        *RULES,
        *BOUND,
        SequenceBegin,
        SequenceDropout,
        SequenceEnd,
        CellBegin,
        CellEnd,
        ExpectSteps,
        EmbeddingOutput,
        ExpectLike,
        MaskScores,
        CloseRows,
        AttentionBegin,
        AttentionEnd,
        AdditiveMask,
        SameBatch,
    ):
        deep_pytorch.op_handler[leaf.__name__] = deep_pytorch.passthrough
    guard_method(deep_pytorch.PyTorchDeep, "__init__", _constructing)
    guard_method(deep_pytorch.PyTorchDeep, "shap_values", _explaining)


@contextmanager
def _constructing(_: Any, model: Any, *args: Any, **kwargs: Any) -> Iterator[None]:
    """Shap sets evaluation mode for good when an explainer is made."""
    root = model[0] if isinstance(model, tuple) else model
    if not holds_atoms(root):
        yield
        return
    with EXPLAINING, as_found(root):
        yield


@contextmanager
def _explaining(explainer: Any, *args: Any, **kwargs: Any) -> Iterator[None]:
    model = explainer.model
    if not holds_atoms(model):
        yield
        return
    with (
        EXPLAINING,
        as_found(model),
        _recognized(model),
        _not_hooked_for_nothing(model, explainer.layer),
        bound_rules(model.eval()),
        integers_as_numbers(explainer),
    ):
        yield


@contextmanager
def _not_hooked_for_nothing(model: nn.Module, layer: nn.Module | None) -> Iterator[None]:
    """Keep shap from hooking the backward pass of modules whose gradients it leaves as they are.

    Torch lets nobody write in place to what a module with such a hook takes or returns. The hook of the
    layer that is explained stays: it tells what the layer gets from what else is made of the same tensor.
    The caller restores the modules.
    """
    from shap.explainers._deep import deep_pytorch

    handlers = deep_pytorch.op_handler
    idle = (deep_pytorch.passthrough, deep_pytorch.linear_1d)
    for module in model.modules():
        if module is not layer and handlers.get(type(module).__name__) in idle:
            object.__setattr__(module, "register_full_backward_hook", _no_hook)
    yield


def _no_hook(_: Any) -> RemovableHandle:
    return RemovableHandle(OrderedDict())


@contextmanager
def _recognized(model: nn.Module) -> Iterator[None]:
    """Keep shap from warning of the user's modules whose calls are given their rules while they run."""
    from shap.explainers._deep import deep_pytorch

    handlers = deep_pytorch.op_handler
    modules = dict(model.named_modules())
    kinds = {type(modules[name]).__name__ for name in islands_of(model) if name in modules}
    new = kinds - handlers.keys()
    handlers.update(dict.fromkeys(new, deep_pytorch.passthrough))
    try:
        yield
    finally:
        for kind in new:
            del handlers[kind]
