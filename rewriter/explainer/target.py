"""Choose what is explained: a part of the outputs, and with respect to what a layer takes or gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from passes.errors import RewriteError
from passes.user_code.clone import clone_structure
from rewriter.compiler.decompose import lowered
from rewriter.engine.linked_modules import linked_copy, linked_function
from rewriter.engine.problem import Target
from rewriter.engine.weights import SharedWeights
from rewriter.explainer.batch_places import Neuron
from rewriter.explainer.cut import Cut
from rewriter.explainer.layers import is_in_graph, names_of, place_cut, return_output_of
from rewriter.explainer.original import Original
from rewriter.inputs import Model, as_module, selecting

Output = Callable[[Any], Tensor] | str | int | tuple[nn.Module, Any] | None


@dataclass(frozen=True)
class Asked:
    """What of a model is explained, and with respect to what.

    Args:
        model: the user's.
        layer: the module of it whose input, or output, receives the attributions; None for the model's input.
        output: key, index or function that picks what is explained from what the model returns, or a module
            and what picks it from what that gives.
        attribute_to_layer_input: whether it is the layer's input.

    """

    model: nn.Module
    layer: nn.Module | None = None
    output: Output = None
    attribute_to_layer_input: bool = True

    @classmethod
    def of(cls, model: Model | tuple[nn.Module, nn.Module], output: Output, to_input: bool) -> Asked:
        """Take apart what a user gives.

        Raises:
            RewriteError: for what is no model, layer or output.

        """
        given, layer = model if isinstance(model, tuple) and len(model) == 2 else (model, None)
        asked = cls(as_module(given), layer, output, to_input)
        if layer is not None:
            as_module(layer, "layer")
        elif not to_input:
            raise RewriteError("attribute_to_layer_input: expected (model, layer) with it, got a model alone")
        if isinstance(output, tuple) and not (len(output) == 2 and isinstance(output[0], nn.Module)):
            raise RewriteError(
                "output: expected a key, an index, a function, or (layer, neuron) with a module of the "
                f"model, got {output!r}"
            )
        for each in filter(None, (layer, asked.gives)):
            names_of(asked.model, each)
        return asked

    @cached_property
    def select(self) -> Callable[[Any], Any]:
        """Picks what is explained from what the model, or the layer whose neuron it is, returns."""
        if not isinstance(self.output, tuple):
            return selecting(self.output)
        layer, neuron = self.output
        if callable(neuron):
            return selecting(neuron)
        return Neuron(names_of(self.model, layer)[0] or "the model itself", neuron)

    @property
    def gives(self) -> nn.Module | None:
        """The module whose output is explained; None for the model's."""
        return self.output[0] if isinstance(self.output, tuple) else None

    @property
    def computes(self) -> bool:
        """Whether the output is what a function makes of it."""
        return callable(self.output[1] if isinstance(self.output, tuple) else self.output)

    def same_of(self, model: nn.Module) -> Asked:
        """Return what is asked, of a copy of the model."""

        def mapped(layer: nn.Module) -> nn.Module:
            return model.get_submodule(names_of(self.model, layer)[0])

        layer = None if self.layer is None else mapped(self.layer)
        output = (mapped(self.output[0]), self.output[1]) if isinstance(self.output, tuple) else self.output
        return replace(self, model=model, layer=layer, output=output)

    def original(self) -> Original:
        """Return what the user's own code gives."""
        names = None if self.gives is None else names_of(self.model, self.gives)
        return Original(self.model, self.select, names)


def linked_target(asked: Asked, code: str | None = None) -> tuple[Target, Cut | None]:
    """Decompose a model, make a linked copy, and remember what of it is to be explained.

    Args:
        asked: what is to be explained.
        code: why the model's own code is to run, with rewritten layers, instead of a graph.

    Returns:
        What is explained, and where the copy is cut for a layer.

    Raises:
        RewriteError: if the model cannot be rewritten, or the layer is not to be found in what it became.

    Example:
        >>> import torch
        >>> linked_target(Asked(nn.GRU(3, 2), output=0))[0].run([torch.zeros(4, 5, 3)]).shape
        torch.Size([4, 5, 2])

    """
    _check_tensors(asked.model)
    rewritten = lowered(asked.model, code)
    copy = linked_copy(rewritten)
    target = Target(
        copy,
        SharedWeights(asked.model, copy),
        linked_function("output", asked.select) if asked.computes else asked.select,
        tokens=True,
        code=code,
        rewritten=rewritten,
    )
    gives = None if asked.gives is None else names_of(asked.model, asked.gives)
    if gives is not None:
        followed = clone_structure(rewritten)
        return_output_of(followed, gives)
        target = replace(target, followed=followed)
    # In a graph what is put behind a node comes before what was put there; in code it comes after.
    early = gives is not None and is_in_graph(copy, gives)
    if gives is not None and early:
        return_output_of(copy, gives)
    cut = None
    if asked.layer is not None:
        names = names_of(asked.model, asked.layer)
        cut = Cut(names[0], "input" if asked.attribute_to_layer_input else "output")
        place_cut(copy, names, cut)
        target = replace(target, interim=names[0])
    if gives is not None and not early:
        return_output_of(copy, gives)
    return target, cut


def _check_tensors(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise RewriteError(
                f"{name}: a meta tensor has no numbers; load the weights first, as "
                "model.load_state_dict(weights, assign=True) does"
            )
        if tensor.is_inference():
            raise RewriteError(
                f"{name}: made under torch.inference_mode(), so autograd cannot use it; make or load the "
                "model outside, and only run it there"
            )
