"""Tracers that other threads do not notice."""

from __future__ import annotations

import math
import threading
from typing import Any

from torch import fx, nn
from torch.nn.utils import rnn

from passes.graph.own_thread import trace_in_own_thread
from passes.leaves import Atom, Layout

# A trace puts back what it found, so that they cannot take turns.
_TRACING = threading.RLock()


class OwnThreadTracer(fx.Tracer):
    """Traces what its own thread runs; modules that other threads run meanwhile just run.

    Example:
        >>> graph = OwnThreadTracer().trace(nn.Sequential(nn.Tanh()))
        >>> [node.op for node in graph.nodes]
        ['placeholder', 'call_module', 'output']

    """

    def trace(self, *args: Any, **kwargs: Any) -> fx.Graph:
        """Return the graph; one thread at a time."""
        with _TRACING:
            return trace_in_own_thread(self, *args, **kwargs)

    def create_node(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
    ) -> fx.Node:
        """Make a node with the name that :meth:`node_name` gives it."""
        return super().create_node(
            kind, target, args, kwargs, self.node_name(kind, target) or name, type_expr
        )

    def node_name(self, kind: str, target: Any) -> str | None:
        """Return what a new node is to be called; None for the name that torch.fx gives."""
        return None


class AtomTracer(OwnThreadTracer):
    """Traces modules of ours down to atoms, layout modules and Linears.

    Example:
        >>> graph = AtomTracer().trace(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
        >>> [node.op for node in graph.nodes]
        ['placeholder', 'call_module', 'call_function', 'output']

    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Stop at what a rule can bind to."""
        return isinstance(m, Atom | Layout | nn.Linear)


class GraphTracer(OwnThreadTracer):
    """Traces what packs and unpacks sequences as calls, whose inside torch.fx cannot follow.

    Such calls are in the code that a pickled graph is traced from again.

    Example:
        >>> graph = GraphTracer().trace(nn.Sequential(nn.Tanh()))
        >>> [node.op for node in graph.nodes]
        ['placeholder', 'call_module', 'output']

    """

    def __init__(self) -> None:
        super().__init__(autowrap_modules=(math, rnn))  # type: ignore[arg-type]
        # Tests of a type, of ``Tensor`` say, which that module imports, need the type itself.
        self._autowrap_function_ids -= {id(each) for each in vars(rnn).values() if isinstance(each, type)}

    def trace(self, *args: Any, **kwargs: Any) -> fx.Graph:
        """Return a graph whose code can be run."""
        graph = super().trace(*args, **kwargs)
        for node in graph.nodes:
            # The code would ask fx to wrap a function by a name that the code does not have.
            node.meta.pop("is_wrapped", None)
        return graph
