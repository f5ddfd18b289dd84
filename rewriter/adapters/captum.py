"""The adapter to captum's ``DeepLift`` explainers: bind our rules while they attribute.

captum, too, runs samples and references as the two halves of one batch; it hooks only modules of
exactly the types that it knows, so our atoms are left to our rules.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from rewriter.adapters.guard import EXPLAINING, guard_method, holds_atoms
from rewriter.adapters.layers import layer_called
from rewriter.adapters.on_import import EXPLAINERS
from rewriter.adapters.pairs import bound_rules
from rewriter.adapters.restore import as_found
from rewriter.compiler.first_calls import prove_first, unwatched


def register_captum() -> None:
    """Teach captum's ``DeepLift``, ``DeepLiftShap`` and their forms for layers and neurons our atoms, now.

    ``import rewriter`` arranges this for whenever captum is imported, so there is no need to call it.

    Raises:
        ImportError: if captum is not installed.

    Example:
        >>> register_captum()

    """
    for name in EXPLAINERS:
        teach(importlib.import_module(name))


def teach(module: ModuleType) -> None:
    """Guard the explainers of one of captum's modules."""
    for explainer in EXPLAINERS[module.__name__]:
        guard_method(getattr(module, explainer), "attribute", _attributing)


@contextmanager
def _attributing(explainer: Any, inputs: Any = None, *args: Any, **kwargs: Any) -> Iterator[None]:
    # Those for neurons keep the model under the name of captum's other methods.
    model = getattr(explainer, "model", None) or explainer.forward_func
    if not holds_atoms(model):
        yield
        return
    more = kwargs.get("additional_forward_args")
    more = more if isinstance(more, tuple) else () if more is None else (more,)
    prove_first(model, (*(inputs if isinstance(inputs, tuple) else (inputs,)), *more))
    given = inspect.signature(type(explainer).attribute).bind_partial(explainer, inputs, *args, **kwargs)
    to_input = any(given.arguments.get(f"attribute_to_{what}_input") for what in ("layer", "neuron"))
    layer = layer_called(model, getattr(explainer, "layer", None), "input" if to_input else "output")
    with EXPLAINING, as_found(model), unwatched(), layer, bound_rules(model):
        yield
