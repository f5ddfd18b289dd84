"""Run one model on one input, forward and backward, and leave everything as it was."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from passes.graph.layers import layer_calls
from passes.recurrent.lengths import as_arguments
from passes.user_code.clone import private_clone
from passes.user_code.observe import ByNode
from passes.user_code.structure import tensors_in
from passes.user_code.surroundings import unnoticed
from passes.user_code.tensors import TensorCopies
from rewriter.compiler.proof import default_dtype
from rewriter.places import map_tensors, numbers


@dataclass(frozen=True)
class Conditions:
    """Under which a model runs.

    Args:
        dtype: what the model and its floating inputs are converted to.
        seed: of all random draws.
        default_dtype: what torch creates tensors in meanwhile; None leaves that as it is.

    Example:
        >>> Conditions(torch.float64, seed=0).default_dtype is None
        True

    """

    dtype: torch.dtype
    seed: int
    default_dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Run:
    """What a model made of an input.

    Args:
        output: the output as it came.
        cotangents: by which each output was weighted before the backward pass.
        input_gradients: by place, for floating inputs; zeros where the output does not depend on it.
        parameter_gradients: by name, every name of a tied parameter; zeros likewise.
        buffers: by name, as they are after the call.

    """

    output: Any
    cotangents: Mapping[str, Tensor]
    input_gradients: Mapping[str, Tensor]
    parameter_gradients: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]


def run(
    model: nn.Module,
    example_inputs: Any,
    conditions: Conditions,
    cotangents: Mapping[str, Tensor] | None = None,
) -> Run:
    """Run a copy of ``model`` on a copy of the inputs and differentiate all its outputs at once.

    Args:
        model: stays as it is, and so do the random number generators.
        example_inputs: as :func:`rewriter.decompose` takes them.
        conditions: dtype and seed.
        cotangents: weights of the outputs by place; drawn at random if absent.

    Raises:
        Exception: whatever the model raises.

    Example:
        >>> double = run(nn.Linear(2, 1), torch.ones(3, 2), Conditions(torch.float64, seed=0))
        >>> double.output.dtype, list(double.parameter_gradients)
        (torch.float64, ['weight', 'bias'])

    """
    leaves: dict[str, Tensor] = {}

    def prepare(place: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.detach().clone()
        leaves[place] = tensor.detach().to(conditions.dtype, copy=True).requires_grad_()
        # A model may write into its input, which torch forbids for a leaf.
        return leaves[place].clone()

    with _surroundings(conditions):
        probe = _independent(model, conditions.dtype).to(conditions.dtype)
        args, kwargs = as_arguments(map_tensors(example_inputs, "input", prepare))
        with unnoticed(model):
            _seed(conditions.seed)
            output = probe(*args, **kwargs)
            buffers = {
                name: buffer.detach().clone()
                for name, buffer in probe.named_buffers(remove_duplicate=False)
                if not is_lazy(buffer)
            }
            if cotangents is None:
                cotangents = _draw_like(numbers(output, "output"), conditions.seed)
            parameters = dict(probe.named_parameters(remove_duplicate=False))
            gradients = _gradients(output, cotangents, [*leaves.values(), *parameters.values()])
    of_inputs = dict(zip(leaves, gradients, strict=False))
    of_parameters = dict(zip(parameters, gradients[len(leaves) :], strict=True))
    return Run(output, cotangents, of_inputs, of_parameters, buffers)


def takes(model: nn.Module, example_inputs: Any, conditions: Conditions) -> Exception | None:
    """Return what a copy of ``model`` raises on the inputs, without gradients; None if it takes them.

    Example:
        >>> takes(nn.Linear(2, 1), torch.ones(3, 2), Conditions(torch.float32, seed=0)) is None
        True

    """
    try:
        _outputs_of_layers(model, example_inputs, conditions, [])
    except Exception as error:
        return error
    return None


def layers_given(
    model: nn.Module, example_inputs: Any, conditions: Conditions
) -> dict[str, list[Tensor | None]]:
    """Run a copy of ``model`` without gradients; return what each layer gives when it is first called.

    Args:
        model: also a graph that :func:`rewriter.decompose` made, in which most layers are written out.
        example_inputs: as :func:`rewriter.decompose` takes them.
        conditions: dtype and seed.

    Returns:
        By name, in the order in which the calls end; None for what a graph does not use.

    Raises:
        Exception: whatever the model raises.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1), nn.Tanh())
        >>> list(layers_given(model, torch.ones(3, 2), Conditions(torch.float32, seed=0)))
        ['0', '1', '']

    """
    found: list[tuple[str, list[Tensor | None]]] = []
    _outputs_of_layers(model, example_inputs, conditions, found)
    given: dict[str, list[Tensor | None]] = {}
    for name, tensors in found:
        given.setdefault(name, tensors)
    return given


def _outputs_of_layers(
    model: nn.Module,
    example_inputs: Any,
    conditions: Conditions,
    found: list[tuple[str, list[Tensor | None]]],
) -> None:
    def prepare(_: str, tensor: Tensor) -> Tensor:
        copy = tensor.detach().clone()
        return copy.to(conditions.dtype) if copy.is_floating_point() else copy

    with _surroundings(conditions), torch.no_grad():
        probe = _independent(model, conditions.dtype).to(conditions.dtype)
        for name, module in probe.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                module.register_forward_hook(_noting(name, found))
        args, kwargs = as_arguments(map_tensors(example_inputs, "input", prepare))
        with unnoticed(model):
            _seed(conditions.seed)
            if isinstance(probe, fx.GraphModule):
                _ByLayer(probe, found).run_with(*args, **kwargs)
            else:
                probe(*args, **kwargs)


def _noting(name: str, found: list[tuple[str, list[Tensor | None]]]) -> Any:
    def note(_: nn.Module, __: Any, output: Any) -> None:
        # Code may write to them afterwards.
        found.append((name, [each.detach().clone() for each in tensors_in(output)]))

    return note


class _ByLayer(ByNode):
    """Runs a graph, and notes what the layers give that are written out in it."""

    def __init__(self, model: fx.GraphModule, found: list[tuple[str, list[Tensor | None]]]) -> None:
        super().__init__(model)
        self._found = found
        self._ends: dict[str, list[str]] = {}
        self._calls = {name: call for name, call in layer_calls(model).items() if call is not None}
        for name, call in self._calls.items():
            self._ends.setdefault(call[1], []).append(name)
        self._wanted = {output for call in self._calls.values() for output in call[3]}
        self._values: dict[str, list[Tensor | None]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and note the layers that end with it."""
        value = super().run_node(n)
        if n.name in self._wanted:
            self._values[n.name] = [each.detach().clone() for each in tensors_in(value)]
        for name in self._ends.get(n.name, ()):
            # What nothing uses is not in the graph.
            given = [self._values.get(each, [None]) for each in self._calls[name][3]]
            self._found.append((name, [each for part in given for each in part]))
        return value


def _draw_like(outputs: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Draw on the CPU in float64, so that every dtype and device gets the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for place, tensor in outputs.items():
        if tensor.is_floating_point() or tensor.is_complex():
            wide = torch.complex128 if tensor.is_complex() else torch.float64
            drawn[place] = torch.randn(tensor.shape, generator=generator, dtype=wide).to(tensor)
    return drawn


def _gradients(output: Any, cotangents: Mapping[str, Tensor], leaves: list[Tensor]) -> list[Tensor]:
    weighted = [
        (tensor, cotangents[place].to(tensor))
        for place, tensor in numbers(output, "output").items()
        if tensor.requires_grad and place in cotangents and cotangents[place].shape == tensor.shape
    ]
    trainable = [leaf for leaf in leaves if leaf.requires_grad]
    found: dict[int, Tensor | None] = {}
    if weighted and trainable:
        tensors, weights = zip(*weighted, strict=True)
        gradients = torch.autograd.grad(tensors, trainable, weights, allow_unused=True)
        found = {id(leaf): gradient for leaf, gradient in zip(trainable, gradients, strict=True)}
    return [
        torch.zeros_like(leaf) if (gradient := found.get(id(leaf))) is None else gradient for leaf in leaves
    ]


def _independent(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    copies = TensorCopies()

    def own(tensor: Tensor) -> Tensor:
        # What the model computed has the dtype that it ran in.
        return (
            copies(tensor) if tensor.is_leaf or not tensor.is_floating_point() else copies(tensor).to(dtype)
        )

    return private_clone(model, own)


@contextmanager
def _surroundings(conditions: Conditions) -> Iterator[None]:
    """Compute with gradients and without cuDNN, which has none for layers in evaluation mode."""
    without_cudnn = torch.backends.cudnn.flags(enabled=False)
    with (
        default_dtype(conditions.default_dtype),
        without_cudnn,
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        yield


def _seed(seed: int) -> None:
    """Seed torch, ``random`` and numpy."""
    torch.default_generator.manual_seed(seed)
    # Asking for a device would start CUDA.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    numpy: Any = sys.modules.get("numpy")
    if numpy:
        numpy.random.seed(seed)
