"""Choose what is explained: a part of the outputs, and with respect to what a layer takes or gives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from passes.errors import FixedSizeError, RewriteError
from passes.user_code.clone import clone_structure
from passes.user_code.source import with_line
from rewriter.compiler.decompose import lowered
from rewriter.compiler.proof import wrong
from rewriter.diagnosis.coupled_rows import check_rows_apart
from rewriter.engine.attribution import Remembered
from rewriter.engine.kept_state import keeps_state
from rewriter.engine.linked_modules import linked_copy, linked_function
from rewriter.engine.problem import Inputs, Target
from rewriter.engine.tiles import spans
from rewriter.engine.weights import SharedWeights
from rewriter.explainer.arguments import check_outputs, mean_of
from rewriter.explainer.batch_places import Neuron
from rewriter.explainer.cut import Cut
from rewriter.explainer.found import Since
from rewriter.explainer.layers import is_in_graph, names_of, place_cut, return_output_of
from rewriter.explainer.original import Original
from rewriter.explainer.suspects import why_not_run
from rewriter.inputs import Model, as_module, selecting
from rewriter.keras.origin import Origin
from rewriter.keras.replacements import in_torch, place_in_torch

# Rows of a run without attributions, whose memory nobody plans.
_ROWS = 16
# Which one thread at a time does.
_FOLLOWING = threading.RLock()

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
        origin: the model of Keras that the model was made of.
        given: what the user gave for model and output then.

    """

    model: nn.Module
    layer: nn.Module | None = None
    output: Output = None
    attribute_to_layer_input: bool = True
    origin: Origin | None = None
    given: tuple[Any, Any] = (None, None)

    @classmethod
    def of(cls, model: Model | tuple[nn.Module, nn.Module], output: Output, to_input: bool) -> Asked:
        """Take apart what a user gives.

        Raises:
            RewriteError: for what is no model, layer or output.

        """
        given, layer = model if isinstance(model, tuple) and len(model) == 2 else (model, None)
        (made, origin), asked_for = in_torch(given), (model, output)
        if origin is not None:
            layer = place_in_torch(made, layer)
            if isinstance(output, tuple):
                output = (place_in_torch(made, output[0]), *output[1:])
        asked = cls(as_module(made), layer, output, to_input, origin, asked_for)
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

    @property
    def arguments(self) -> dict[str, Any]:
        """What asks for it, as arguments of ``DeepExplainer``."""
        return {
            "model": self.model if self.layer is None else (self.model, self.layer),
            "output": self.output,
            "attribute_to_layer_input": self.attribute_to_layer_input,
        }

    def same_of(self, model: nn.Module) -> Asked:
        """Return what is asked, of a copy of the model."""

        def mapped(layer: nn.Module) -> nn.Module:
            return model.get_submodule(names_of(self.model, layer)[0])

        layer = None if self.layer is None else mapped(self.layer)
        output = (mapped(self.output[0]), self.output[1]) if isinstance(self.output, tuple) else self.output
        return replace(self, model=model, layer=layer, output=output, origin=None)

    def again(self) -> Asked:
        """Return what is asked, of what the model of Keras is now."""
        return Asked.of(*self.given, self.attribute_to_layer_input)

    def __getstate__(self) -> dict[str, Any]:
        """Stand by itself in a copy: Keras' models are not copied with it."""
        return {**self.__dict__, "origin": None, "given": (None, None)}

    def original(self) -> Original:
        """Return what the user's own code gives."""
        names = None if self.gives is None else names_of(self.model, self.gives)
        return Original(self.model, self.select, names, self.origin)


def linked_target(
    asked: Asked, code: str | None = None, example: Sequence[Tensor] | None = None
) -> tuple[Target, Cut | None]:
    """Decompose a model, make a linked copy, and remember what of it is to be explained.

    Args:
        asked: what is to be explained.
        code: why the model's own code is to run, with rewritten layers, instead of a graph.
        example: inputs; loops that go by their sizes are written out for those.

    Returns:
        What is explained, and where the copy is cut for a layer.

    Raises:
        RewriteError: if the model cannot be rewritten, or the layer is not to be found in what it became.

    Example:
        >>> linked_target(Asked(nn.GRU(3, 2), output=0))[0].run([torch.zeros(4, 5, 3)]).shape
        torch.Size([4, 5, 2])

    """
    _check_tensors(asked.model)
    rewritten = lowered(asked.model, code, example)
    layer, gives = (
        None if each is None else names_of(asked.model, each) for each in (asked.layer, asked.gives)
    )
    cut = None if layer is None else Cut(layer[0], "input" if asked.attribute_to_layer_input else "output")

    def change(copy: nn.Module, *, in_graph: bool) -> None:
        # In a graph what is put behind a node comes before what was put there; in code it comes after.
        changes = [(gives, partial(return_output_of, copy, gives))] if gives is not None else []
        if layer is not None and cut is not None:
            changes.append((layer, partial(place_cut, copy, layer, cut)))
        for names, make in changes if in_graph else reversed(changes):
            if is_in_graph(copy, names) == in_graph:
                make()

    # A loop that a layer is a part of is none any more once it is cut there.
    copy = linked_copy(rewritten, rolled=True, cut=partial(change, in_graph=True))
    change(copy, in_graph=False)
    target = Target(
        copy,
        SharedWeights(asked.model, copy),
        linked_function("output", asked.select) if asked.computes else asked.select,
        tokens=True,
        code=code,
        rewritten=rewritten,
    )
    if gives is not None:
        followed = clone_structure(rewritten)
        return_output_of(followed, gives)
        target = replace(target, followed=followed)
    if layer is not None:
        target = replace(target, interim=layer[0])
    return target, cut


class Subject:
    """What runs of a model that is explained: as the model is now, and held against its own code.

    Args:
        asked: what of the model is explained.
        example: inputs, of which only the sizes count.

    Example:
        >>> Subject(Asked(nn.Tanh()))._run([torch.zeros(2, 1)])
        tensor([[0.],
                [0.]])

    """

    _data: Inputs
    _output_shape: torch.Size
    _target: Target
    _cut: Cut | None
    _remembered: Remembered
    # The weights, and the mean of the outputs with them.
    _expected: tuple[tuple[int, ...], Any]

    def __init__(self, asked: Asked, example: Sequence[Tensor] | None = None) -> None:
        self._asked, self._example = asked, example
        with torch.inference_mode(False):
            self._aim(None)
            self._since, self._original = Since(asked.model), asked.original()

    @property
    def expected_value(self) -> Any:
        """The mean of the outputs over the background, one per output; a number where they have no axis.

        It belongs to the model as it is: to weights that were trained since, and what was set since.
        """
        self._follow()
        weights = self._target.weights.checksums()
        if self._expected[0] != weights:
            self._expected = weights, mean_of(self._run(self._data))
        return self._expected[1]

    def _proven(self, inputs: Inputs, outputs: Tensor) -> bool:
        """Hold outputs against the user's own code; False if that runs from now on, in place of a graph.

        Raises:
            UnprovenError: if they differ, and there was no graph.

        """
        with self._full_precision():
            if not len(outputs) or self._original.agrees(inputs, outputs):
                return True
            assert self._target.rewritten is not None
            reason = self._original.proves(self._target.rewritten, inputs)
        if not reason:
            self._original.check_gap(inputs, outputs)
            return True
        if self._target.code is not None or not isinstance(self._target.rewritten, fx.GraphModule):
            raise wrong(self._original.model, reason)
        reason = f"a graph of it computes something else: {reason}"
        self._aim(reason)
        with self._full_precision():
            self._measure()
        return False

    def _aim(self, code: str | None) -> None:
        """Have a graph of the model run, or, for a reason, its code."""
        self._target, self._cut = linked_target(self._asked, code, self._example)
        # What it was made with: no weights.
        self._remembered = Remembered()
        self._expected = (), None

    def _settle(self) -> Tensor:
        """Run the background by what is proven to compute what the model does."""
        with self._full_precision():
            self._original.find_rows(self._data)
            check_rows_apart(self._original.explained, self._original.select, self._data)
        try:
            outputs = self._first_run()
        except FixedSizeError as error:
            # It hangs on the number of rows after all.
            self._aim(str(error))
            outputs = self._first_run()
        while not self._proven(self._data, outputs):
            outputs = self._first_run()
        self._output_shape = outputs.shape[1:]
        self._expected = self._target.weights.checksums(), mean_of(outputs)
        return outputs

    def _follow(self) -> None:
        """Explain the model as it is now, if something was set in it, or hooked to it, since."""
        if self._asked.origin is not None and not self._asked.origin.is_same():
            self._begin_again()
            return
        self._target.weights.check()
        if self._since.is_same():
            return
        with _FOLLOWING, torch.inference_mode(False):
            since, original = Since(self._asked.model), self._asked.original()
            outputs = self._run(self._data)
            with self._full_precision():
                original.find_rows(self._data)
                same = original.agrees(self._data, outputs)
            self._since, self._original, self._remembered = since, original, Remembered()
            if same:
                self._expected = self._target.weights.checksums(), mean_of(outputs)
            else:
                self._aim(None)
                self._settle()

    def _begin_again(self) -> None:
        """Explain what a model of Keras is now: it was made anew."""
        with _FOLLOWING, torch.inference_mode(False):
            self._asked = self._asked.again()
            self._since, self._original = Since(self._asked.model), self._asked.original()
            self._aim(None)
            self._settle()

    def _first_run(self) -> Tensor:
        """Run the background.

        Raises:
            RewriteError: if that fails, or its outputs are nothing that can be explained.

        """
        try:
            with self._full_precision():
                self._measure()
            outputs = self._run(self._data)
        except RewriteError as error:
            with_line(error)
            raise
        except Exception as error:
            raise RewriteError(why_not_run(self._data, error)) from error
        check_outputs(outputs, self._original.explained, self._data)
        return outputs

    def _full_precision(self, inputs: Inputs | None = None) -> torch.autocast:
        """Switch off the autocast of the caller: attributions are differences."""
        return torch.autocast((inputs or self._data)[0].device.type, enabled=False)

    def _run(self, inputs: Inputs) -> Tensor:
        """Return the outputs of the model, without attributions."""
        with self._full_precision(inputs), torch.no_grad():
            parts = [
                self._target.run([each[begin:end].clone() for each in inputs])
                for begin, end in spans(len(inputs[0]), _ROWS)
            ]
        return torch.cat(parts)

    def _measure(self) -> None:
        """Find out whether the code keeps something between calls, and where the rows of a layer are."""
        rows = [each[:_ROWS] for each in self._data]
        self._target = replace(self._target, stateful=keeps_state(self._target.model, rows))
        if self._cut is not None:
            self._cut.measure(self._target, self._data)


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
