"""Programs of ``torch.export``: graphs of torch's operators, for the shapes that they were exported for."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from pickle import PicklingError
from typing import Any

import torch
from torch import fx, nn
from torch.fx._pytree import tree_flatten_spec
from torch.utils._pytree import tree_unflatten

from passes.errors import InputError
from passes.graph.graph_module import graph_module
from passes.leaves import Layout
from passes.recurrent.kernels import KERNELS

_GUARDS = "_guards_fn"


class ExpectExported(Layout):
    """Guard the entrance of an exported program, which is true only of what it was exported for.

    Args:
        guards: torch's function, which raises AssertionError.

    Example:
        >>> ExpectExported(lambda x: None)(torch.ones(1))
        (tensor([1.]),)

    """

    def __init__(self, guards: Callable[..., Any]) -> None:
        super().__init__()
        self.guards = guards

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        """Return the inputs.

        Raises:
            InputError: if they are not what the program was exported for.

        """
        try:
            self.guards(*inputs)
        except AssertionError as error:
            raise InputError(
                f"the exported program takes other inputs: {error}; export the model with dynamic_shapes=... "
                "for what is to be free"
            ) from None
        return inputs

    def __copy__(self) -> ExpectExported:
        return ExpectExported(self.guards)

    def __deepcopy__(self, memo: dict[int, Any]) -> ExpectExported:
        return ExpectExported(self.guards)

    def __reduce__(self) -> Any:
        raise PicklingError(
            "torch cannot pickle what it exported; use torch.export.save, and decompose again"
        )


def is_exported(model: object) -> bool:
    """Whether something is an exported program, or what its method ``module`` returns.

    Example:
        >>> program = torch.export.export(nn.Linear(2, 3), (torch.ones(1, 2),))
        >>> is_exported(program), is_exported(program.module()), is_exported(nn.Linear(2, 3))
        (True, True, False)

    """
    if isinstance(model, fx.GraphModule):
        return type(getattr(model, _GUARDS, None)).__module__ == "torch.export._unlift"
    # Whoever has a program has imported that, which takes a second.
    exported = sys.modules.get("torch.export.exported_program")
    return exported is not None and isinstance(model, exported.ExportedProgram)


def is_graph_of_program(model: nn.Module) -> bool:
    """Whether a model is what :func:`exported_module` returns."""
    return isinstance(getattr(model, _GUARDS, None), ExpectExported)


def exported_module(exported: Any) -> fx.GraphModule:
    """Return an exported program as a graph with the same parameters, which checks its inputs.

    Recurrent layers are written out, for the length that the program was exported for.

    Args:
        exported: a program, or what its method ``module`` returned; in the latter nothing can be written out
            any more.

    Example:
        >>> program = torch.export.export(nn.Linear(2, 3), (torch.ones(1, 2),))
        >>> exported_module(program)(torch.ones(1, 2)).shape
        torch.Size([1, 3])

    """
    if not isinstance(exported, fx.GraphModule):
        exported = _without_kernels(exported).module()
    graph = _with_plain_arguments(exported.graph)
    check = next(node for node in graph.nodes if node.target == _GUARDS)
    with graph.inserting_after(check):
        for k, each in reversed(list(enumerate(check.args))):
            item = graph.call_function(operator.getitem, (check, k))
            each.replace_all_uses_with(item, delete_user_cb=lambda user: user is not check)
    # Not the program's hooks, which check what the node does, nor its methods: there is but one mode.
    clone = nn.Module()
    for holder in ("_parameters", "_buffers", "_modules"):
        getattr(clone, holder).update(getattr(exported, holder))
    for node in graph.nodes:
        # A constant that the model's code made is neither a parameter nor a buffer.
        if node.op == "get_attr" and "." not in node.target and not hasattr(clone, node.target):
            clone.register_buffer(node.target, getattr(exported, node.target), persistent=False)
    setattr(clone, _GUARDS, ExpectExported(getattr(clone, _GUARDS).forward))
    return graph_module(clone, graph, "Exported")


def _with_plain_arguments(graph: fx.Graph) -> fx.Graph:
    """Copy a graph whose code takes its arguments apart, as nodes that do so."""
    info = graph._codegen.pytree_info  # type: ignore[attr-defined]
    positional, keywords = info.in_spec.children()
    plain = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(plain)
    given = [fx.Proxy(plain.placeholder(name), tracer) for name in info.orig_args]
    count = positional.num_children
    structure = given[:count], dict(zip(keywords.context, given[count:], strict=True))
    parts = iter(tree_flatten_spec(structure, info.in_spec))
    values: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = next(parts).node
        elif node.op == "output":
            plain.output(tree_unflatten([values.get(each, each) for each in node.args[0]], info.out_spec))
        else:
            values[node] = plain.node_copy(node, values.__getitem__)
    return plain


def _without_kernels(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    written_out: dict[Any, Callable[..., Any]] = {
        kernel: decomposition
        for kernel, decomposition in torch.export.default_decompositions().items()  # type: ignore[no-untyped-call]
        if kernel._schema.name.partition("::")[2] in KERNELS
    }
    calls = {node.target for node in program.graph.nodes}
    return program.run_decompositions(written_out) if calls & written_out.keys() else program
