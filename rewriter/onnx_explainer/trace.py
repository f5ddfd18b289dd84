"""Make a graph of an explanation, for any number of samples: everything that runs, noted by torch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from rewriter.onnx.sizes.assumptions import conditions_of
from rewriter.onnx_explainer.operators import DECOMPOSITIONS, FlatLinears
from rewriter.onnx_explainer.scans import Loop, noted_loops

# Conditions on larger sizes are those of torch, on what numbers can index.
_LARGEST = 2**22

#: Sizes of the axes of a tensor that are free, which tell them from each other while a graph is made.
Free = Mapping[int, int]


@dataclass(frozen=True)
class Traced:
    """A graph that was noted.

    Args:
        graph: of operators of ATen.
        inputs: what it was noted with: tensors without numbers, whose free axes have sizes that are symbols.
        loops: what nodes in it stand for.
        mode: of the tensors.

    """

    graph: fx.GraphModule
    inputs: list[Tensor]
    loops: list[Loop]
    mode: FakeTensorMode

    def first_broken(self) -> tuple[str, int] | None:
        """Return a line of the user's that decides by a size, and a size for which it decides otherwise."""
        environment = self.mode.shape_env
        assert environment is not None
        sizes: list[Any] = [size for each in self.inputs for size in each.shape]
        hints = {size.node.expr: int(size.node.hint) for size in sizes if isinstance(size, torch.SymInt)}
        # Axes of one role have one size, and no two roles have the same.
        role = {symbol: next(each for each in hints if hints[each] == hints[symbol]) for symbol in hints}
        for condition in conditions_of(environment):
            asked = replace(condition, holds=condition.holds.xreplace(role))
            # An axis that was fixed has no hint; it is told as such.
            for symbol in (asked.holds.free_symbols & hints.keys()) if asked.line else ():
                for size in asked.first_broken(symbol, hints):
                    if size < _LARGEST:
                        return asked.line, size
        return None

    def like(self, sizes: Sequence[Any], dtype: torch.dtype) -> Tensor:
        """Return an input more; what is a symbol of ``sizes`` is free."""
        free = {axis: size.node.hint for axis, size in enumerate(sizes) if isinstance(size, torch.SymInt)}
        shape = [free.get(axis, size) for axis, size in enumerate(sizes)]
        return _without_numbers(self.mode, torch.empty(shape, dtype=dtype), free)


def traced(function: Callable[..., Any], tensors: Sequence[Tensor], free: Sequence[Free]) -> Traced:
    """Note what a function of tensors calls, for any size of the free axes.

    Args:
        function: what is noted.
        tensors: like those that it takes.
        free: for each the axes that may have any size, with the size that they have meanwhile.

    Example:
        >>> noted = traced(lambda x: x.flatten() * 2, [torch.ones(3, 2)], [{0: 13}])
        >>> noted.graph(torch.ones(5, 2)).shape
        torch.Size([10])

    """
    mode = FakeTensorMode(
        shape_env=ShapeEnv(duck_shape=False, specialize_zero_one=True), allow_non_fake_inputs=True
    )
    inputs = [_without_numbers(mode, *each) for each in zip(tensors, free, strict=True)]
    with mode, noted_loops() as loops, FlatLinears():
        graph = make_fx(function, dict(DECOMPOSITIONS), tracing_mode="symbolic", _allow_non_fake_inputs=True)(
            *inputs
        )
    graph.graph.eliminate_dead_code()
    _infer_sizes(graph.graph)
    graph.recompile()
    return Traced(graph, inputs, loops.found, mode)


def _without_numbers(mode: FakeTensorMode, tensor: Tensor, free: Free) -> Tensor:
    shape = [free.get(axis, size) for axis, size in enumerate(tensor.shape)]
    dims = [DimDynamic.DYNAMIC if axis in free else DimDynamic.STATIC for axis in range(tensor.dim())]
    context: Any = StatelessSymbolicContext(dynamic_sizes=dims)
    return mode.from_tensor(tensor.new_zeros(shape), symbolic_context=context)


def _infer_sizes(graph: fx.Graph) -> None:
    """Leave the one size of a view that is computed to be inferred: nothing is computed for it then."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.sym_numel.default:
            _spell_numel(graph, node)
        if node.target not in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
            continue
        shape = node.args[1]
        computed = [k for k, size in enumerate(shape) if isinstance(size, fx.Node)]
        if len(computed) == 1 and not any(size in (0, -1) for size in shape):
            node.args = (node.args[0], [-1 if k in computed else size for k, size in enumerate(shape)])
    graph.eliminate_dead_code()


def _spell_numel(graph: fx.Graph, node: fx.Node) -> None:
    """Write a number of elements, which torch.onnx does not know, as the product of sizes."""
    (source,) = node.args
    with graph.inserting_before(node):
        total: Any = 1
        for axis in range(source.meta["val"].dim()):  # type: ignore[union-attr]
            size = graph.call_function(torch.ops.aten.sym_size.int, (source, axis))
            total = size if axis == 0 else graph.call_function(operator.mul, (total, size))
    node.replace_all_uses_with(total)
    graph.erase_node(node)
