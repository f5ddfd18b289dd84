"""The adapter to captum's ``DeepLift`` and ``DeepLiftShap``: bind our rules while they attribute.

captum, too, runs samples and references as the two halves of one batch; it hooks only modules of
exactly the types that it knows, so our atoms are left to our rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import wrapt

from rewriter._adapt import guard_method, holds_atoms
from rewriter._pairs import bound_rules
from rewriter._restore import as_found

_MODULE = "captum.attr._core.deep_lift"


def register_captum() -> None:
    """Teach captum's ``DeepLift`` and ``DeepLiftShap`` our atoms, now.

    ``import rewriter`` arranges this for whenever captum is imported, so there is no need to call it.

    Raises:
        ImportError: if captum is not installed.

    Example:
        >>> register_captum()

    """
    from captum.attr._core import deep_lift

    _register(deep_lift)


def register_when_imported() -> None:
    """Have the registration follow the import of captum, in whatever order."""
    wrapt.register_post_import_hook(_register, _MODULE)


def _register(deep_lift: ModuleType) -> None:
    for explainer in (deep_lift.DeepLift, deep_lift.DeepLiftShap):
        guard_method(explainer, "attribute", _attributing)


@contextmanager
def _attributing(explainer: Any, *args: Any, **kwargs: Any) -> Iterator[None]:
    if not holds_atoms(explainer.model):
        yield
        return
    with as_found(explainer.model), bound_rules(explainer.model):
        yield
