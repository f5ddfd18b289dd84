"""Decompose the models that shap and captum are given, where their users asked for it once and for all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import nn

from passes.errors import DeclinedError, RewriteError
from passes.frontends.exported import is_exported
from rewriter.adapters.guard import holds_atoms
from rewriter.adapters.stock_rules import explained_by_stock
from rewriter.compiler.decompose import decompose
from rewriter.compiler.first_calls import prove_first
from rewriter.compiler.report import Report
from rewriter.explainer.found import Found
from rewriter.explainer.layers import names_of

# What an explanation under way in this thread leaves as it is: some explainers call others.
LEFT_ALONE: ContextVar[object] = ContextVar("rewriter_left_alone", default=None)


class Made(NamedTuple):
    """What became of a model: it was decomposed, or it is to be left alone."""

    model: nn.Module | None
    found: Found | None = None


class Automatic:
    """Decomposes what a library's explainers are given, while it is switched on.

    Args:
        switch: the call of ours that switches it, for messages.
        has_rule: whether the library explains a module right by itself.

    Example:
        >>> from rewriter.adapters.stock_rules import is_plain
        >>> import torch
        >>> automatic = Automatic("register_mine", is_plain)
        >>> automatic.of(nn.Sequential(nn.Tanh()), [torch.ones(2, 3)]) is None
        True
        >>> automatic.of(nn.Sequential(nn.Softmax(1)), [torch.ones(2, 3)]) is None
        False

    """

    def __init__(self, switch: str, has_rule: Callable[[nn.Module], bool]) -> None:
        self.switch = switch
        self.has_rule = has_rule
        self.on = False
        self._lock = threading.Lock()
        self._kept: WeakKeyDictionary[Any, Made] = WeakKeyDictionary()

    def takes(self, model: object) -> bool:
        """Whether a model is to be looked at: it is PyTorch's, and nobody decomposed it by hand."""
        if not self.on or model is LEFT_ALONE.get():
            return False
        return is_exported(model) or (isinstance(model, nn.Module) and not _by_hand(model))

    def of(self, model: Any, args: Sequence[Any]) -> nn.Module | None:
        """Return a decomposed model; None for one that the library explains right as it is.

        Args:
            model: the user's, which is not changed.
            args: what it is called with.

        Raises:
            RewriteError: naming what cannot be decomposed, and how to go on.

        """
        advice = f"rewriter.{self.switch}(automatic=False) gives stock behaviour back"
        try:
            rewritten = decompose(model)
            if isinstance(model, nn.Module) and explained_by_stock(model, rewritten, self.has_rule, args):
                return None
            prove_first(rewritten, args)
        except DeclinedError as error:
            raise DeclinedError(
                error.declines,
                "Mend them. To have the rest explained and these left as they are, with attributions that do "
                f"not add up, give the explainer rewriter.decompose(model, strict=False); {advice}.",
            ) from None
        except RewriteError as error:
            error.add_note(advice)
            raise
        return rewritten

    def kept_for(self, owner: object, model: nn.Module, args: Sequence[Any]) -> nn.Module | None:
        """Return the same as :meth:`of`, made once for an explainer unless the model was changed since.

        Args:
            owner: the explainer.
            model: as for :meth:`of`.
            args: likewise.

        """
        with self._lock:
            made = self._kept.get(owner)
        if made is None or made.found is None or not made.found.is_as(model):
            made = Made(self.of(model, args), Found(model))
            with self._lock:
                self._kept[owner] = made
        return made.model


def _by_hand(model: nn.Module) -> bool:
    """Whether decompose made a model, perhaps one of which it could rewrite nothing."""
    try:
        Report.of(model)
    except RewriteError:
        return holds_atoms(model)
    return True


def layer_of(rewritten: nn.Module, model: nn.Module, layer: nn.Module) -> nn.Module:
    """Return the module of a decomposed model that has the name of a layer of the original.

    Raises:
        RewriteError: if the layer is not a part of the model, or the model does not call it.

    Example:
        >>> model = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 1))
        >>> rewritten = decompose(model)
        >>> layer_of(rewritten, model, model[0]) is rewritten.get_submodule("0")
        True

    """
    names = names_of(model, layer)
    modules: dict[str, nn.Module] = dict(rewritten.named_modules(remove_duplicate=False))
    for name in names:
        if name in modules:
            return modules[name]
    raise RewriteError(
        f"{names[0]}: is not reached, so there is nothing to explain; explain a layer that the model calls "
        "when it runs"
    )
