"""What Keras' layers on the torch backend become when a model is decomposed, by way of replacements."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from passes.errors import Decline, DeclinedError, RewriteError
from passes.user_code.twin import Twin
from rewriter.keras.agreement import check_agreement
from rewriter.keras.functional import calls_forgotten, functional_of
from rewriter.keras.installed import is_layer, kind_of
from rewriter.keras.layers.contract import Translation, UnsupportedError
from rewriter.keras.layers.dense import unsupported_if_half
from rewriter.keras.model import graph_of, identifier, is_graph
from rewriter.keras.origin import Origin
from rewriter.keras.recurrent.build import RECURRENT, bidirectional, recurrent
from rewriter.keras.recurrent.layer import KerasBidirectional, KerasRecurrent
from rewriter.keras.recurrent.states import declines_of, is_stateful, stateful_layers

Builds = Mapping[type[nn.Module], Callable[[Any], nn.Module]]


class _AmongLayers(nn.Module):
    """What Keras' code asks of a layer beside calling it, for one that has no losses."""

    _layers = ()

    def _clear_losses(self) -> None:
        pass

    def _get_own_losses(self) -> list[Any]:
        return []

    def _get_regularization_losses(self) -> list[Any]:
        return []


class KerasLayer(_AmongLayers):
    """A layer that is run by Keras' own code, with a mask that is handed to it.

    Args:
        layer: of Keras, on the torch backend.

    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the layer returns."""
        return self.layer(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Do the same where Keras' code calls a model in a model."""
        return self.layer(*args, **kwargs)


class InKerasCode(_AmongLayers):
    """A recurrent layer in code that treats it as one of Keras': masks hang on the tensors there.

    Args:
        layer: what computes.

    """

    def __init__(self, layer: KerasRecurrent | KerasBidirectional, *, sequences: bool) -> None:
        super().__init__()
        self.layer = layer
        self.sequences = sequences

    def forward(
        self, sequences: Tensor, initial_state: Any = None, mask: Tensor | None = None, training: Any = None
    ) -> Any:
        """Return what the layer returns; ``training`` does nothing."""
        if mask is None and initial_state is None and isinstance(sequences, Tensor):
            mask = getattr(sequences, "_keras_mask", None)
        out = self.layer(sequences, initial_state, mask)
        if mask is not None and self.sequences and isinstance(out, Tensor):
            out._keras_mask = mask  # type: ignore[attr-defined]  # as Keras does
        return out


def keras_builds(
    modules: Mapping[str, nn.Module], kept: Iterable[type] = (), *, models: bool = True
) -> tuple[Builds, dict[str, nn.Module]]:
    """Return what layers and models of Keras become, and the modules that this leaves for others.

    A model whose graph is known becomes one as a whole, with all that is in it.

    Args:
        modules: of the model that is decomposed, by name.
        kept: types that something else is built for.
        models: have models become graphs; else only the recurrent layers in their code are replaced.

    Example:
        >>> keras_builds({"": nn.Linear(2, 1)})
        ({}, {'': Linear(in_features=2, out_features=1, bias=True)})

    """
    if "keras" not in sys.modules or not any(map(is_layer, modules.values())):
        return {}, dict(modules)
    keras = sys.modules["keras"]
    layers = keras.layers
    build = _Models(frozenset(kept))
    left: dict[str, nn.Module] = {}
    whole: list[str] = []
    recurrent = dict.fromkeys(
        (layers.LSTM, layers.GRU, layers.SimpleRNN, layers.RNN, layers.Bidirectional), _layer
    )
    if not models:
        return recurrent, dict(modules)
    for name, module in modules.items():
        if any(f"{name}.".startswith(prefix) for prefix in whole):
            continue
        left[name] = module
        if isinstance(module, keras.Model) and type(module) not in build.kept and build.knows(module):
            whole.append(f"{name}." if name else "")
    x = keras.Input((1,))
    kinds = [type(module) for module in left.values() if id(module) in build.known]
    return {
        **dict.fromkeys((*kinds, keras.Sequential, type(keras.Model(x, x))), build),
        **dict.fromkeys(
            (layers.LSTM, layers.GRU, layers.SimpleRNN, layers.RNN, layers.Bidirectional), _layer
        ),
    }, left


def keras_declines(modules: Mapping[str, nn.Module]) -> list[Decline]:
    """Return the reason against each layer of Keras among modules, by name, that no rewrite can stand for.

    Example:
        >>> keras_declines({"": nn.Linear(2, 1)})
        []

    """
    found: list[Decline] = []
    seen: set[int] = set()
    module: Any
    for name, module in modules.items():
        if is_layer(module) and id(module) not in seen:
            seen.update(map(id, module._flatten_layers()))
            found += (*declines_of(name, module), *_halves(name, module))
    return found


def in_torch(model: Any) -> tuple[Any, Origin | None]:
    """Return the torch module of a Keras model whose graph is known, and that model; else what is given.

    It takes an argument for each input, in the place of a list of them. Both are compared here.

    Raises:
        DeclinedError: for layers that keep a state for each row or compute in half precision, and for a model
            on another backend with layers for which no torch module is known.
        RewriteError: for a model on another backend whose code cannot be followed.

    Example:
        >>> in_torch("a text")
        ('a text', None)

    """
    if not is_layer(model) or not (is_graph(model) or isinstance(model, sys.modules["keras"].Model)):
        return model, None
    declines = list(_halves("", model))
    if declines:
        raise DeclinedError(tuple(declines), "Mend them, then go on.")
    on_torch = isinstance(model, nn.Module)
    try:
        with calls_forgotten(model):
            graph = model if is_graph(model) else functional_of(model)
            made = graph_of(graph, otherwise=_own_code if on_torch else None)
        own_code = any(isinstance(each, KerasLayer) for each in made.modules())
        if own_code:
            # Code of the user's may count its calls.
            check_agreement(Twin(model).model, Twin(made).model, graph)
        else:
            check_agreement(model, made, graph)
    except RewriteError:
        if not on_torch or stateful_layers(model):
            raise
        return model, None
    return made, Origin(model, graph, own_code=own_code)


def place_in_torch(made: nn.Module, layer: Any) -> Any:
    """Return what a layer of a Keras model became in the torch module of that, anything else as it is.

    Example:
        >>> place_in_torch(nn.Linear(2, 1), None) is None
        True

    """
    if not is_layer(layer):
        return layer
    own = identifier(layer.name)
    found = [each for name, each in made.named_modules() if name.rpartition(".")[2] == own]
    return found[0] if found else layer


class _Models:
    """Builds graphs of models, and keeps them until they are asked for."""

    def __init__(self, kept: frozenset[type]) -> None:
        self.kept = kept
        self.known: dict[int, nn.Module] = {}

    def knows(self, model: nn.Module) -> bool:
        try:
            # It is a clone, whose layers may be called.
            graph = model if is_graph(model) else functional_of(model)
            self.known[id(model)] = graph_of(graph, packed=True, otherwise=_own_code, kept=self.kept)
        except RewriteError:
            return False
        return True

    def __call__(self, model: nn.Module) -> nn.Module:
        if id(model) not in self.known and not self.knows(model):
            return KerasLayer(model)
        return self.known[id(model)]


def _halves(name: str, model: Any) -> Iterator[Decline]:
    inside: set[int] = set()
    for each in model._flatten_layers():
        try:
            unsupported_if_half(each)
        except UnsupportedError as error:
            # A cell is said with its layer.
            if each is not model and id(each) not in inside:
                path = f"{name}.{each.name}" if name else each.name
                yield Decline(path, type(each).__name__, str(error))
            inside.update(() if each is model else map(id, each._flatten_layers()))


def _own_code(layer: Any) -> Translation | None:
    if is_stateful(layer) and kind_of(layer) in RECURRENT:
        # What speaks against it has been said.
        return None
    if is_stateful(layer):
        raise UnsupportedError(
            "it is stateful, and Keras' own code, which runs here, would move its state; set "
            "layer.stateful = False, so that each row begins at zero"
        )
    masks = (("", "mask"),) if layer._call_has_mask_arg else ()
    return Translation(KerasLayer(layer), masks, out="kept" if layer.supports_masking else "none")


def _layer(layer: Any) -> nn.Module:
    if is_stateful(layer):
        return KerasLayer(layer)
    translate = bidirectional if hasattr(layer, "merge_mode") else recurrent
    try:
        made: Any = translate(layer).module
    except UnsupportedError:
        return KerasLayer(layer)
    return InKerasCode(made, sequences=layer.return_sequences)
