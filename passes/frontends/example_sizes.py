"""Numbers that a model's code reads off its inputs, as examples tell them: how many steps there are, say.

Examples differ in the number of their rows. A number that is the same for all of them may decide how often a
loop runs; the graph checks it again whenever it runs.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from passes.errors import FixedSizeError
from passes.graph.leaf_functions import leaf
from passes.user_code.hooks import has_hooks
from passes.user_code.structure import map_tensors, tensors_in

#: Makes what one trace asks; a trace may change the shapes of its inputs.
Sizes = Callable[[], "ExampleSizes"]
# One row, which may be taken away, few, more, and more than code may do by tables; nothing is computed.
_ROWS = (1, 2, 7, 4099)


class ExampleSizes:
    """What numbers of a graph are, for examples that differ in their rows.

    Args:
        forward: of the model.
        args: positional arguments that it takes.
        kwargs: keyword arguments.

    Example:
        >>> sizes = ExampleSizes(nn.Tanh().forward, (torch.zeros(4, 6),), {})
        >>> model = fx.symbolic_trace(nn.Tanh())
        >>> x = next(iter(model.graph.nodes))
        >>> size = model.graph.call_method("size", (x, 1))
        >>> rows = model.graph.call_method("size", (x, 0))
        >>> sizes.number(size, model), sizes.number(rows, model), sizes.length(x, model)
        (6, None, None)

    """

    def __init__(self, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        bound = inspect.signature(forward).bind(*args, **kwargs)
        bound.apply_defaults()
        self._examples = [_Example(bound.arguments, rows) for rows in _ROWS]

    def number(self, node: fx.Node, model: nn.Module) -> int | None:
        """Return a whole number, or a truth value, that is the same in all examples, else None."""
        return self._same(lambda example: _plain(example.value(node, model)))

    def length(self, node: fx.Node, model: nn.Module) -> int | None:
        """Return the length of a tensor or a tuple if it is the same in all examples, else None."""
        return self._same(lambda example: len(example.value(node, model)))

    def is_none(self, name: str) -> bool | None:
        """Return whether an argument is None; of those that are taken with a star, None."""
        return None if name.startswith("*") else self._examples[0].arguments[name] is None

    def _same(self, of: Callable[[_Example], int]) -> int | None:
        found: list[int] = []

        def look() -> None:
            with torch.no_grad():
                found.extend(map(of, self._examples))

        # In a thread of its own nothing is traced.
        thread = threading.Thread(target=_without_errors, args=(look,))
        thread.start()
        thread.join()
        return found[0] if len(set(found)) == 1 and len(found) == len(_ROWS) else None


class Example(NamedTuple):
    """What a model takes.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.

    """

    args: Sequence[Any]
    kwargs: Mapping[str, Any] = MappingProxyType({})

    def sizes(self, forward: Callable[..., Any]) -> Sizes | None:
        """Return what tells sizes, if all inputs have as many rows in their first dimension, else None.

        Example:
            >>> Example([torch.zeros(2), torch.zeros(3)]).sizes(nn.Bilinear(1, 1, 1).forward)

        """
        rows = {each.shape[0] for each in tensors_in((self.args, self.kwargs)) if each.dim()}
        return partial(ExampleSizes, forward, self.args, self.kwargs) if len(rows) == 1 else None


@leaf
def check_fixed(found: Any, expected: int, line: str) -> None:
    """Raise FixedSizeError for another number than the one that a graph was written out for.

    Args:
        found: the number, or what has that length.
        expected: what it was in the examples.
        line: the user's that reads it.

    Example:
        >>> check_fixed(torch.zeros(3), 3, "")

    """
    number = found if isinstance(found, int | torch.SymInt | torch.SymBool) else len(found)
    if number != expected:
        at = f" at {line}" if line else ""
        raise FixedSizeError(
            f"what the model's code reads of its inputs{at} was {expected} in the example inputs, and its "
            f"loop is written out for that; got {number}. Give example inputs of this length, or none: "
            "decompose(model) takes any"
        )


@leaf
def check_none(given: Any, expected: bool, name: str) -> None:
    """Raise FixedSizeError if an argument is None, and was not in the example inputs, or the reverse.

    Args:
        given: the argument.
        expected: whether it was None.
        name: what it is called.

    Example:
        >>> check_none(None, True, "state")

    """
    if (given is None) != expected:
        was, now = ("None", "something else") if expected else ("given", "None")
        raise FixedSizeError(
            f"{name} was {was} in the example inputs, for which the model's code is written out; now it is "
            f"{now}. Give example inputs as the model is called, or none: decompose(model) takes any"
        )


class _Example:
    """Values of nodes for one number of rows; of tensors without their numbers."""

    def __init__(self, arguments: Mapping[str, Any], rows: int) -> None:
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._values: dict[fx.Node, Any] = {}

        def blank(tensor: Tensor) -> Tensor:
            shape = (rows, *tensor.shape[1:]) if tensor.dim() else ()
            return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)

        with self._mode:
            self.arguments = {name: map_tensors(blank, value) for name, value in arguments.items()}

    def value(self, node: fx.Node, model: nn.Module) -> Any:
        pending = [node]
        with self._mode:
            while pending:
                missing = [each for each in pending[-1].all_input_nodes if each not in self._values]
                if missing:
                    pending += missing
                else:
                    each = pending.pop()
                    if each not in self._values:
                        self._values[each] = self._computed(each, model)
        return self._values[node]

    def _computed(self, node: fx.Node, model: nn.Module) -> Any:
        if node.op == "placeholder":
            return self.arguments[str(node.target).lstrip("*")]
        target: Any = node.target
        if node.op == "get_attr":
            owner, _, name = target.rpartition(".")
            return getattr(model.get_submodule(owner), name)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._values.__getitem__)
        if node.op == "call_function":
            return target(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        module = model.get_submodule(target)
        if not all(type(each).__module__.startswith(("torch.nn.", "passes.")) for each in module.modules()):
            raise TypeError("the user's code is not run")
        if any(map(has_hooks, module.modules())):
            raise TypeError("hooks are not run")
        return module(*args, **kwargs)


def _plain(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError("no whole number")
    return value


def _without_errors(function: Callable[[], None]) -> None:
    # Whatever the user's code raises, a run of it tells.
    with suppress(Exception):
        function()
