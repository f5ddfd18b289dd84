"""The graph of a Keras model as a torch.fx graph, one node for each layer, with the masks on their way."""

from __future__ import annotations

import inspect
import keyword
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from passes.errors import Decline, DeclinedError, RewriteError
from rewriter.keras.installed import is_layer, kind_of
from rewriter.keras.layers.contract import Translation, UnsupportedError
from rewriter.keras.layers.table import translation_of
from rewriter.keras.operations import call_of
from rewriter.keras.recurrent.layer import KerasRecurrent
from rewriter.keras.weights import parameter

#: Translates a layer, given its name, or returns None.
Otherwise = Callable[[Any], Translation | None]
ADVICE = (
    "A layer of torch, or of Keras, in its place would be known. Where the process runs Keras on torch "
    "(KERAS_BACKEND=torch), rewriter.decompose(model) and rewriter.DeepExplainer(model, background) take the "
    "layers as they are."
)


def is_graph(model: Any) -> bool:
    """Whether a layer of Keras is a model whose graph is known: Functional, or Sequential."""
    return kind_of(model) in ("Functional", "Sequential", "Model") and (
        getattr(_functional(model), "_nodes_by_depth", None) is not None
    )


def graph_of(
    model: Any,
    *,
    packed: bool = False,
    otherwise: Otherwise | None = None,
    kept: frozenset[type] = frozenset(),
) -> fx.GraphModule:
    """Return the torch module of a Functional or Sequential model.

    Args:
        model: the model, built.
        packed: several inputs come as one argument, as Keras takes them, else one by one.
        otherwise: what to try for a layer, or an operation, that is not known.
        kept: types of layers for which nothing else is to be tried.

    Raises:
        DeclinedError: listing every layer that is not known, and why.

    """
    writer = _Writer(otherwise or (lambda layer: None), kept)
    functional = _functional(model)
    struct = functional._inputs_struct
    inputs = writer.inputs(functional, struct, packed=packed)
    values, _ = writer.model(model, "", inputs, [None] * len(inputs))
    outputs = [values.get(id(each)) for each in functional._outputs]
    if writer.declines:
        raise DeclinedError(tuple(writer.declines), ADVICE if otherwise is None else "Mend them, then go on.")
    writer.graph.output(_filled(functional._outputs_struct, outputs))
    graph = fx.GraphModule(
        writer.root, writer.graph, class_name=identifier(model.name).title().replace("_", "")
    )
    return graph.eval()


def _functional(model: Any) -> Any:
    return model._functional if kind_of(model) == "Sequential" else model


class _Writer:
    """Writes the graph, model by model, and notes what it cannot write."""

    def __init__(self, otherwise: Otherwise, kept: frozenset[type]) -> None:
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.otherwise = otherwise
        self.kept = kept
        self.declines: list[Decline] = []
        # Where each layer is, by its id: one that is shared is there once.
        self.known: dict[int, tuple[str, Translation] | None] = {}

    def inputs(self, functional: Any, struct: Any, *, packed: bool) -> list[fx.Node]:
        if not packed or isinstance(struct, type(functional._inputs[0])) or len(functional._inputs) == 1:
            return [self.graph.placeholder(identifier(each.name)) for each in functional._inputs]
        given = self.graph.placeholder("inputs")
        # Keras takes dictionaries apart in the order of their keys.
        keys = sorted(struct) if isinstance(struct, dict) else range(len(struct))
        if not all(isinstance(struct[key], type(functional._inputs[0])) for key in keys):
            raise UnsupportedError("its inputs are nested; give them in one list, or one dictionary")
        return [self.graph.call_function(operator.getitem, (given, key)) for key in keys]

    def model(
        self, model: Any, path: str, inputs: Sequence[Any], masks: Sequence[Any]
    ) -> tuple[dict[int, Any], dict[int, Any]]:
        """Write all nodes of a model; returns the node of each of its tensors, and that of its mask."""
        functional = _functional(model)
        values = {id(each): node for each, node in zip(functional._inputs, inputs, strict=True)}
        known = {id(each): mask for each, mask in zip(functional._inputs, masks, strict=True)}
        for depth in sorted(functional._nodes_by_depth, reverse=True):
            for node in functional._nodes_by_depth[depth]:
                if node.operation is not None and not node.is_input:
                    self._node(node, path, values, known)
        return values, known

    def _node(self, node: Any, path: str, values: dict[int, Any], masks: dict[int, Any]) -> None:
        tensor = type(node.outputs[0])
        args, kwargs = node.arguments.args, node.arguments.kwargs
        op = node.operation
        name = ".".join(each for each in (path, identifier(op.name)) if each)
        try:
            if is_layer(op) and is_graph(op):
                self._nested(op, name, node, values, masks)
                return
            made = [_mapped(each, tensor, values, self._constant) for each in (args, kwargs)]
            if not is_layer(op):
                function, given = call_of(op, made[0], made[1])
                result, mask = self.graph.call_function(function, given), None
                leaves = _leaves(self.root, len(node.outputs))
            else:
                where, translation = self._module(op, name)
                given_masks = [_mapped(each, tensor, masks) for each in (args, kwargs)]
                result, mask = self._call(where, translation, made, given_masks)
                leaves = _leaves(translation.module, len(node.outputs))
        except UnsupportedError as error:
            if id(op) not in self.known or self.known[id(op)] is not None:
                self.declines.append(Decline(name, type(op).__name__, str(error)))
            self.known[id(op)] = None
            # So that what is behind is looked at, too; nothing comes of the graph.
            nothing = self.graph.call_function(operator.getitem, (None, 0))
            values.update((id(output), nothing) for output in node.outputs)
            return
        parts = [result] if len(node.outputs) == 1 else [self._part(result, leaf) for leaf in leaves]
        for k, (output, part) in enumerate(zip(node.outputs, parts, strict=True)):
            values[id(output)] = part
            masks[id(output)] = mask if k == 0 or _both(op, k) else None

    def _nested(
        self, model: Any, name: str, node: Any, values: dict[int, Any], masks: dict[int, Any]
    ) -> None:
        given = node.arguments.keras_tensors
        inner = self.model(model, name, [values[id(x)] for x in given], [masks.get(id(x)) for x in given])
        for output, own in zip(node.outputs, _functional(model)._outputs, strict=True):
            if id(own) in inner[0]:
                values[id(output)] = inner[0][id(own)]
                masks[id(output)] = inner[1].get(id(own))

    def _module(self, layer: Any, name: str) -> tuple[str, Translation]:
        if id(layer) in self.known:
            found = self.known[id(layer)]
            if found is None:
                raise UnsupportedError("the same as before")
            return found
        try:
            translation = translation_of(layer, self.kept)
        except UnsupportedError:
            other = self.otherwise(layer)
            if other is None:
                raise
            translation = other
        _place(self.root, name, translation.module)
        self.known[id(layer)] = (name, translation)
        return name, translation

    def _call(
        self, where: str, translation: Translation, made: Sequence[Any], masks: Sequence[Any]
    ) -> tuple[fx.Node, Any]:
        args = list(made[0])
        kwargs = {key: value for key, value in made[1].items() if key != "training" and value is not None}
        parameters = list(inspect.signature(translation.module.forward).parameters)
        named = dict(zip(parameters, args, strict=False)) | kwargs
        own = dict(zip(parameters, masks[0], strict=False)) | dict(masks[1])
        first = parameters[0]
        for source, target in translation.masks:
            if target in kwargs:
                continue
            mask = own.get(first if source in ("", "*") else source)
            if source == "*":
                mask = mask if isinstance(mask, list | tuple) and any(x is not None for x in mask) else None
            # Keras hands a mask on by itself where one argument is a tensor, or to an argument by its name.
            if mask is not None and (source not in ("", "*") or len(_tensors(named)) == 1):
                kwargs[target] = mask
        unknown = [key for key in kwargs if key not in parameters and "kwargs" not in parameters]
        if unknown:
            raise UnsupportedError(f"it is called with {', '.join(unknown)}, which is not known here")
        result = self.graph.call_module(where, tuple(args), kwargs)
        return result, self._mask(where, translation, named[first], own.get(first))

    def _mask(self, where: str, translation: Translation, given: Any, masks: Any) -> Any:
        if translation.out == "none":
            return None
        if translation.out == "kept":
            return masks if isinstance(masks, fx.Node) else None
        path = f"{where}_mask"
        assert translation.makes is not None
        if translation.out == "merged":
            if not isinstance(masks, list | tuple) or any(each is None for each in masks):
                return None
            given = list(masks)
        _place(self.root, path, translation.makes)
        return self.graph.call_module(path, (given,))

    def _constant(self, value: Any) -> fx.Node:
        """Return the node of a weight, or of an array, that the model's code uses without a layer."""
        name = f"weight_{sum(1 for _ in self.root.parameters(recurse=False))}"
        known = {id(each): key for key, each in self.root.named_parameters(recurse=False)}
        made = parameter(value)
        if id(made) not in known:
            self.root.register_parameter(name, made)
        return self.graph.get_attr(known.get(id(made), name))

    def _part(self, result: Any, leaf: Sequence[int]) -> Any:
        for index in leaf:
            result = self.graph.call_function(operator.getitem, (result, index))
        return result


def _leaves(module: nn.Module, count: int) -> list[tuple[int, ...]]:
    """Say where each output of a layer is in what the module returns."""
    if not (isinstance(module, KerasRecurrent) and module.nested):
        return [(k,) for k in range(count)]
    states = [
        (1 + k,) if number == 1 else (1 + k, i)
        for k, (number, _) in enumerate(module.sizes)
        for i in range(number)
    ]
    return [(0,), *states]


def _both(layer: Any, index: int) -> bool:
    """Whether the second output is a sequence like the first."""
    return index == 1 and kind_of(layer) == "Bidirectional" and layer.merge_mode is None


def _tensors(named: dict[str, Any]) -> list[str]:
    def any_node(value: Any) -> bool:
        return isinstance(value, fx.Node) or (isinstance(value, list | tuple) and any(map(any_node, value)))

    return [key for key, value in named.items() if any_node(value)]


def _mapped(
    value: Any, tensor: type, table: dict[int, Any], constant: Callable[[Any], Any] | None = None
) -> Any:
    """Put what a table has in the place of each tensor of Keras, and nodes in that of weights."""
    if isinstance(value, tensor):
        return table.get(id(value))
    if isinstance(value, list | tuple):
        return type(value)(_mapped(each, tensor, table, constant) for each in value)
    if isinstance(value, dict):
        return {key: _mapped(each, tensor, table, constant) for key, each in value.items()}
    if constant is not None and (hasattr(value, "__array__") or isinstance(value, torch.Tensor)):
        return constant(value)
    return value


def _filled(struct: Any, outputs: Sequence[Any]) -> Any:
    """Return outputs in the structure that Keras returns them in."""
    left = list(outputs)

    def fill(part: Any) -> Any:
        if isinstance(part, list | tuple):
            return type(part)(fill(each) for each in part)
        if isinstance(part, dict):
            return {key: fill(part[key]) for key in sorted(part)}
        return left.pop(0)

    filled = fill(struct)
    return filled[0] if isinstance(filled, list | tuple) and len(filled) == 1 else filled


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, leaf = path.split(".")
    for each in parents:
        if each not in root._modules:
            root.add_module(each, nn.Module())
        root = root._modules[each]  # type: ignore[assignment]  # it is there
    if leaf in root._modules and root._modules[leaf] is not module:
        raise RewriteError(f"{path}: two layers of this name; give each a name of its own")
    root.add_module(leaf, module)


def identifier(name: str) -> str:
    """Return a name that Python takes.

    Example:
        >>> identifier("block/dense 1"), identifier("1st"), identifier("lambda")
        ('block_dense_1', '_1st', '_lambda')

    """
    plain = re.sub(r"\W", "_", name)
    return f"_{plain}" if plain[:1].isdigit() or not plain or keyword.iskeyword(plain) else plain
