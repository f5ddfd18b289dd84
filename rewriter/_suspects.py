"""Find the operation that no rule covers, when attributions do not sum to what they explain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from passes.clone import clone_structure
from passes.layout import Layout
from passes.recurrence import Recurrence
from passes.tracing import has_hooks
from rewriter._attribution import Inputs, Target
from rewriter._module_rules import bound_rule_for

_ROWS = 8


def first_break(target: Target, samples: Inputs, references: Inputs) -> str:
    """Name the first operation without a rule that is not linear between a sample and a reference.

    A linear operation takes the midpoint of two inputs to the midpoint of its outputs.

    Args:
        target: what was explained.
        samples: the inputs.
        references: the background, or one for each sample.

    """
    x = [each[:_ROWS] for each in samples]
    x0 = [each[:, 0] if each.dim() > a.dim() else each for each, a in zip(references, samples, strict=True)]
    rows = min(len(x[0]), len(x0[0]))
    # The model may write into its inputs.
    x, x0 = [each[:rows].clone() for each in x], [each[:rows].clone() for each in x0]
    with torch.no_grad():
        for name, kind, run, arguments, arguments0 in _calls(target.model, x, x0):
            try:
                linear = _is_linear(run, arguments, arguments0)
            except Exception:
                continue
            if not linear:
                return f"The first operation without an exact rule is {name} ({kind})."
    return (
        "Every operation that could be examined is linear or has a rule; look for operations in the model's "
        "own code that mix rows of the batch, or sequences of different length."
    )


Call = tuple[str, str, Callable[..., Any], tuple[Any, Any], tuple[Any, Any]]


def _calls(model: nn.Module, x: Inputs, x0: Inputs) -> Iterator[Call]:
    """Yield name, kind, function and both runs' arguments of each operation that has no rule."""
    if isinstance(model, fx.GraphModule):
        yield from _graph_calls(model, x, x0)
    else:
        yield from _module_calls(model, x, x0)


class _Recorded(fx.Interpreter):
    """A run that keeps a copy of every operation's arguments, as they were before it."""

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        self.arguments: dict[fx.Node, tuple[Any, Any]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node."""
        if n.op.startswith("call_"):
            self.arguments[n] = _copied(self.fetch_args_kwargs_from_env(n))
        return super().run_node(n)


def _graph_calls(model: fx.GraphModule, x: Inputs, x0: Inputs) -> Iterator[Call]:
    runs = [_Recorded(model) for _ in range(2)]
    for run, inputs in zip(runs, (x, x0), strict=True):
        run.run(*inputs)
    for node in model.graph.nodes:
        if not node.op.startswith("call_"):
            continue
        module = model.get_submodule(node.target) if node.op == "call_module" else None
        if module is not None and _is_covered(module):
            continue
        both = [run.arguments[node] for run in runs]
        if module is not None:
            yield str(node.target), type(module).__name__, module, both[0], both[1]
        elif node.op == "call_method":
            yield node.name, node.target, getattr(torch.Tensor, node.target), both[0], both[1]
        else:
            yield node.name, getattr(node.target, "__name__", "function"), node.target, both[0], both[1]


def _module_calls(model: nn.Module, x: Inputs, x0: Inputs) -> Iterator[Call]:
    """Record the calls of leaf modules, on a copy that is hooked for this."""
    model = clone_structure(model)
    records: list[list[tuple[str, nn.Module, tuple[Any, Any]]]] = []
    leaves = [(name, each) for name, each in model.named_modules() if not list(each.children())]
    names = {id(module): name for name, module in leaves}

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        records[-1].append((names[id(module)], module, _copied((args, kwargs))))

    for _, module in leaves:
        module.register_forward_pre_hook(note, with_kwargs=True)
    for inputs in (x, x0):
        records.append([])
        model(*inputs)
    for (name, module, both), (other, _, both0) in zip(*records, strict=False):
        if name == other and not _is_covered(module):
            yield name, type(module).__name__, module, both, both0


def _is_covered(module: nn.Module) -> bool:
    return isinstance(module, Recurrence | Layout) or (
        bound_rule_for(module) is not None and not has_hooks(module)
    )


def _is_linear(run: Callable[..., Any], a: tuple[Any, Any], b: tuple[Any, Any]) -> bool:
    # Operations may write into what they are given.
    middle, a, b = _mean(a, b), _copied(a), _copied(b)
    expected = _tensors(_mean(run(*a[0], **a[1]), run(*b[0], **b[1])))
    got = _tensors(run(*middle[0], **middle[1]))
    tolerance = {torch.float64: 1e-9}
    return all(
        bool((g - e).abs().max() <= tolerance.get(e.dtype, 1e-4) * e.abs().max().clamp_min(1e-12))
        for g, e in zip(got, expected, strict=True)
        if e.is_floating_point() and e.numel()
    )


def _mean(a: Any, b: Any) -> Any:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (a + b) / 2 if a.is_floating_point() and a.shape == b.shape else a
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return type(a)(_mean(*each) for each in zip(a, b, strict=True)) if type(a) in (tuple, list) else a
    if isinstance(a, dict) and isinstance(b, dict):
        return {key: _mean(a[key], b[key]) for key in a}
    return a


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (tuple, list):
        return type(value)(_copied(each) for each in value)
    return {key: _copied(each) for key, each in value.items()} if isinstance(value, dict) else value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [each for part in value for each in _tensors(part)]
    return []
