"""What a rewritten layer shows to the model around it: the face of the layer it stands in for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from passes.errors import RewriteError


class Combined(nn.Module):
    """Base of modules whose class may be combined with that of the module they stand for.

    Such a class is made when it is first needed, so a pickle names the two that it was made of.
    """

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        made_of = type(self).__dict__.get("_made_of")
        if made_of is None:
            return super().__reduce_ex__(protocol)  # type: ignore[return-value]
        return blank, made_of, self.__dict__.copy()


_CLASSES: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def combined_class(first: type[nn.Module], second: type[nn.Module]) -> type[nn.Module]:
    """Return the class that derives from both, and is shown as the first.

    Example:
        >>> class Own(Combined): ...
        >>> [each.__name__ for each in combined_class(Own, nn.Tanh).__mro__[:3]]
        ['Own', 'Own', 'Combined']

    """
    if issubclass(first, second) or issubclass(second, first):
        return first if issubclass(first, second) else second
    key = first, second
    if key not in _CLASSES:
        namespace = {"_made_of": key, "__module__": first.__module__}
        _CLASSES[key] = type(first.__name__, key, namespace)
    return _CLASSES[key]


def blank(first: type[nn.Module], second: type[nn.Module]) -> nn.Module:
    """Make a module of the combined class, without a constructor having run."""
    cls = combined_class(first, second)
    return cls.__new__(cls)


class StandIn(Combined):
    """Mixin of the modules that replace a recurrent layer; goes before the torch class in the MRO.

    A stand-in answers ``isinstance(module, nn.LSTM)``, keeps every attribute of the original (sizes,
    hooks, what a subclass added) and finds the parameters under their old names, but owns none of
    them: they live in the Linears below it.
    """

    # Where each of torch's parameters lives below this module: one path, or one for each split gate.
    _paths: dict[str, tuple[str, ...]]
    # Qualified name in the user's model.
    _name: str

    def __getattr__(self, attr: str) -> Any:
        paths = self.__dict__.get("_paths", {}).get(attr)
        if paths is None:
            return super().__getattr__(attr)
        parts = [_resolve(self, path) for path in paths]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __setattr__(self, attr: str, value: Any) -> None:
        paths = self.__dict__.get("_paths", {}).get(attr)
        if paths is None:
            nn.Module.__setattr__(self, attr, value)
            return
        if not isinstance(value, nn.Parameter) or len(paths) > 1:
            raise RewriteError(
                f"{self._name}.{attr}: expected an nn.Parameter for fused gates, got {type(value).__name__} "
                f"for {len(paths)} gate(s); a rewritten layer cannot follow weights computed anew in "
                "each forward pass, and split gates are assigned one by one"
            )
        owner, _, leaf = paths[0].rpartition(".")
        setattr(self.get_submodule(owner), leaf, value)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__setstate__(self, state)  # type: ignore[no-untyped-call]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StandIn:
        # Not the recurrent base class's, which would lay out fused weights.
        nn.Module._apply(self, fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def flatten_parameters(self) -> None:
        """Do nothing: there is no fused kernel to lay the weights out for."""

    @property
    def _flat_weights(self) -> list[Tensor]:
        # Whoever asks for these is about to call the kernel that the rewrite is there to remove.
        raise RewriteError(
            f"{self._name}: a rewritten layer has no flat weights for a fused kernel; call the "
            "layer itself, or read its weights by name, as layer.weight_ih_l0"
        )

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters per layer and direction, as ``nn.RNNBase.all_weights`` lists them."""
        return [[getattr(self, name) for name in names] for names in self.__dict__["_all_weights"]]


S = TypeVar("S", bound=StandIn)


def stand_in_class(original: type[nn.Module], own: type[S]) -> type[S]:
    """Return the class that stands in for ``original``, of which ``own`` holds the forward.

    For a user's subclass the result derives from both, the user's first, so that its
    ``super().forward(...)`` arrives at ours.

    Example:
        >>> from passes.recurrent.layers import LSTMStandIn
        >>> class Scaled(nn.LSTM):
        ...     def forward(self, input, hx=None):
        ...         return super().forward(2 * input, hx)
        >>> [c.__name__ for c in stand_in_class(Scaled, LSTMStandIn).__mro__[:3]]
        ['Scaled', 'Scaled', 'LSTMStandIn']

    """
    return cast("type[S]", combined_class(original, own))


def _resolve(module: nn.Module, path: str) -> Tensor:
    owner, _, leaf = path.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(owner), leaf)
    return tensor


def put_on_face(cls: type[S], layer: nn.Module, weights: set[str], name: str) -> S:
    """Make a stand-in with all attributes of ``layer`` but its ``weights``, not yet with a body."""
    stand_in = cls.__new__(cls)
    attributes = {key: value for key, value in layer.__dict__.items() if not key.startswith("_flat_weight")}
    attributes["_parameters"] = {k: p for k, p in layer._parameters.items() if k not in weights}
    attributes["_modules"] = dict(layer._modules)
    stand_in.__dict__.update(attributes, _paths={}, _name=name)
    return stand_in
