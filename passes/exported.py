"""The second front-end: ``torch.export`` makes one graph of models that torch.fx cannot follow."""

from __future__ import annotations

import inspect
import io
import logging
import operator
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from passes.aten import NoFunctionError, Written, write_call
from passes.audit import assigned_outside_init, watch
from passes.errors import InputError
from passes.layout import Layout
from passes.lower_calls import free_name
from passes.lowered import graph_module
from passes.randomness import random_state, random_state_kept, same_random_state
from passes.tracing import module_attributes
from passes.twin import Twin

# As of the whole rewrite: relative to the largest output.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
# Says what torch.export saw, and has no result.
_METADATA = "_assert_tensor_metadata"


class NotExportedError(Exception):
    """Why there is no exported graph that does exactly what the model does."""


def exported(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], known: Mapping[Any, Any]
) -> fx.GraphModule:
    """Turn a model into one graph of torch's functions, flat, for inputs of the given shapes.

    The graph has the parameters of ``model`` under their names, takes any number of rows, and raises
    InputError for inputs of another shape. It was compared with the model on the given inputs, on one row
    and on twice the rows, evaluated and in training.

    Args:
        model: belongs to the caller; it is not changed.
        args: positional arguments, tensors in tuples, lists and dictionaries.
        kwargs: keyword arguments.
        known: functions and names of methods that are to be used where several compute the same.

    Raises:
        NotExportedError: if torch.export cannot, or the graph would not always do what the model does.

    Example:
        >>> class Branching(nn.Module):
        ...     def forward(self, x):
        ...         return torch.relu(x) if len(x.shape) == 2 else x
        >>> graph = exported(Branching(), (torch.ones(2, 3),), {}, {})
        >>> [str(node) for node in graph.graph.nodes]
        ['x', 'expect_x', 'relu', 'output']

    """
    leaves = pytree.tree_leaves((args, kwargs))
    strange = [type(each).__name__ for each in leaves if not isinstance(each, Tensor)]
    if strange or not leaves:
        raise NotExportedError(f"takes arguments that are not tensors ({', '.join(sorted(set(strange)))})")
    rows = next((each.shape[0] for each in leaves if each.dim()), 0)
    if rows == 1:
        # Of one row torch.export would make a constant.
        args, kwargs = _repeated((args, kwargs), rows, [0, 0])
        rows = 2
    kept = _state(model, args, kwargs)
    if kept:
        raise NotExportedError(kept)
    program = _program(model, args, kwargs, rows)
    twin = Twin(model)
    graph = _Build(twin.model, known, rows).graph(program, args, kwargs)
    result = graph_module(twin.share_again(), graph, type(model).__name__)
    for index in (list(range(rows)), [0], [*range(rows), *range(rows)]):
        _check_same(model, result, rows, index, args, kwargs)
    result.meta["exported"] = True
    return result.train(model.training)


class ExpectLike(Layout):
    """Checks that an input of an exported graph is like the one that it was made for.

    Args:
        name: of the input.
        shape: what is expected, None for the batch.
        dtype: what is expected, None for any.

    Example:
        >>> ExpectLike("x", (None, 4), None)(torch.ones(2, 3))
        Traceback (most recent call last):
        passes.errors.InputError: x: exported for inputs of shape (B, 4), got (2, 3)

    """

    def __init__(self, name: str, shape: tuple[int | None, ...], dtype: torch.dtype | None) -> None:
        super().__init__()
        self.name = name
        self.shape = shape
        self.dtype = dtype

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input``.

        Raises:
            InputError: if it is not as expected.

        """
        got = tuple(input.shape)
        same = [each is None or each == size for each, size in zip(self.shape, got, strict=False)]
        if len(got) != len(self.shape) or not all(same):
            expected = ", ".join("B" if each is None else str(each) for each in self.shape)
            shown = ", ".join(map(str, got))
            raise InputError(f"{self.name}: exported for inputs of shape ({expected}), got ({shown})")
        if self.dtype is not None and input.dtype != self.dtype:
            raise InputError(f"{self.name}: exported for inputs of {self.dtype}, got {input.dtype}")
        return input


def _state(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Say what a model keeps from one call to the next, which torch.export would pass over."""
    for name, module in model.named_modules():
        assigned = assigned_outside_init(type(module))
        if assigned:
            return f"{name or type(module).__name__} assigns {', '.join(sorted(assigned))} in its methods"
    twin = Twin(model).model.eval()
    before = module_attributes(twin)
    with random_state_kept(), watch(lambda: "") as ran, torch.no_grad():
        try:
            twin(*_copied(args), **_copied(kwargs))
        except Exception as error:
            return f"does not run: {type(error).__name__}: {error}".splitlines()[0]
    changed = [place for place, value in module_attributes(twin).items() if before.get(place) != value]
    if changed:
        return f"stores values on {'.'.join(filter(None, changed[0]))}"
    return next((reason for reason in ran.hazards().values() if " assigns " in reason), None)


def _copied(value: Any) -> Any:
    return pytree.tree_map(lambda each: each.detach().clone(), value)


def _program(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int) -> Any:
    # At first use: it takes longer to import than all else.
    from torch.export import Dim, export

    def batch(each: Tensor) -> Any:
        return {0: Dim.DYNAMIC} if each.dim() and each.shape[0] == rows else None

    names = list(inspect.signature(model.forward).parameters)
    shapes = {
        **dict(zip(names, pytree.tree_map(batch, args), strict=False)),
        **pytree.tree_map(batch, kwargs),
    }
    reason = ""
    # Without dynamo first: it sees more Python as it is, but takes len(x) for a constant.
    for strict in (False, True):
        twin = Twin(model)
        before = random_state()
        with _quiet(), random_state_kept():
            try:
                program = export(twin.model.eval(), args, kwargs, dynamic_shapes=shapes, strict=strict)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            drew = not same_random_state(before, random_state())
        signature = program.graph_signature
        if signature.buffers_to_mutate or signature.user_inputs_to_mutate or twin.written():
            raise NotExportedError("writes to buffers or inputs")
        if drew:
            raise NotExportedError("draws random numbers of a fixed shape")
        return program
    raise NotExportedError(reason)


class _Build:
    """Writes an exported program as a graph of torch's functions on the parameters of a model."""

    def __init__(self, model: nn.Module, known: Mapping[Any, Any], rows: int) -> None:
        self.model = model
        self.known = known
        self.rows = rows

    def graph(self, program: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Graph:
        """Return the graph, with the arguments and results of the model."""
        graph = fx.Graph()
        values: dict[str, Any] = {}
        # What is cast to a dtype by name was perhaps cast to that of an input.
        casts = any(isinstance(each, torch.dtype) for node in program.graph.nodes for each in _flat(node))
        given = iter(self._inputs(graph, args, kwargs, casts=casts))
        for spec, node in zip(
            program.graph_signature.input_specs,
            [each for each in program.graph.nodes if each.op == "placeholder"],
            strict=True,
        ):
            if spec.kind.name == "USER_INPUT":
                values[node.name] = next(given)
            else:
                values[node.name] = graph.get_attr(self._attribute(program, spec))
        written = Written(graph, self.model, self.known, values)
        for node in program.graph.nodes:
            if node.op == "call_function" and _METADATA not in str(node.target):
                try:
                    values[node.name] = write_call(written, node)
                except NoFunctionError as error:
                    raise NotExportedError(f"calls {error}") from None
            elif node.op == "get_attr":
                raise NotExportedError("has a block of its own (no_grad, autocast or control flow)")
        (flat,) = next(node for node in program.graph.nodes if node.op == "output").args
        results = [values[each.name] if isinstance(each, fx.Node) else each for each in flat]
        whole = pytree.tree_unflatten(results, program.call_spec.out_spec)
        if not _is_plain(whole):
            raise NotExportedError(f"returns a {type(whole).__name__}")
        graph.output(whole)
        return graph

    def _inputs(
        self, graph: fx.Graph, args: tuple[Any, ...], kwargs: dict[str, Any], *, casts: bool
    ) -> Iterator[fx.Node]:
        names = list(inspect.signature(self.model.forward).parameters)
        arguments = [*zip(names, args, strict=False), *kwargs.items()]
        if len(args) > len(names):
            raise NotExportedError("takes *args")
        nodes = [(name, graph.placeholder(name), value) for name, value in arguments]
        for name, node, value in nodes:
            for path, leaf in pytree.tree_flatten_with_path(value)[0]:
                taken = node
                for key in path:
                    taken = _item(graph, taken, key)
                batch = leaf.dim() > 0 and leaf.shape[0] == self.rows
                shape = (None, *leaf.shape[1:]) if batch else tuple(leaf.shape)
                check = free_name(self.model, f"expect_{name}")
                self.model.add_module(check, ExpectLike(name, shape, leaf.dtype if casts else None))
                yield graph.call_module(check, (taken,))

    def _attribute(self, program: Any, spec: Any) -> str:
        if spec.kind.name in ("PARAMETER", "BUFFER"):
            return str(spec.target)
        if spec.kind.name != "CONSTANT_TENSOR":
            raise NotExportedError(f"holds a {spec.kind.name.lower()}")
        name = f"exported_{spec.target}".replace(".", "_")
        self.model.register_buffer(name, program.constants[spec.target].detach(), persistent=False)
        return name


def _flat(node: fx.Node) -> list[Any]:
    return pytree.tree_leaves((node.args, node.kwargs))


def _item(graph: fx.Graph, node: fx.Node, key: Any) -> fx.Node:
    if isinstance(key, pytree.SequenceKey):
        return graph.call_function(operator.getitem, (node, key.idx))
    if isinstance(key, pytree.MappingKey):
        return graph.call_function(operator.getitem, (node, key.key))
    return graph.call_function(getattr, (node, key.name))


def _is_plain(value: Any) -> bool:
    """Whether torch.fx can return a value."""
    if isinstance(value, dict):
        return type(value) is dict and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, fx.Node | int | float | bool | str)


def _check_same(
    model: nn.Module,
    graph: nn.Module,
    rows: int,
    index: list[int],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Compare outputs and gradients on some rows of the inputs, evaluated and in training."""
    args, kwargs = _repeated((args, kwargs), rows, index)
    for training in (False, True):
        mode = "training" if training else "evaluation"
        try:
            with random_state_kept():
                expected = _outcome(Twin(model).model.train(training), args, kwargs)
            with random_state_kept():
                twin = Twin(graph)
                got = _outcome(twin.model.train(training), args, kwargs)
        except Exception as error:
            first = f"{type(error).__name__}: {error}".splitlines()[0]
            raise NotExportedError(f"does not run in {mode}, on {len(index)} rows: {first}") from error
        if twin.written():
            raise NotExportedError(f"writes to {', '.join(twin.written())}")
        if expected[0] != got[0] or len(expected[1]) != len(got[1]):
            raise NotExportedError("the graph returns another structure")
        for a, b in zip(expected[1], got[1], strict=True):
            if a.dtype != b.dtype or a.shape != b.shape or not _close(a, b):
                raise NotExportedError(f"the graph computes something else in {mode}, on {len(index)} rows")


def _close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point() or not a.numel():
        return torch.equal(a, b)
    bound = _TOLERANCE.get(a.dtype, 1e-2) * a.abs().nan_to_num().max().clamp_min(1.0)
    return bool((((a - b).abs() <= bound) | (a == b) | (a.isnan() & b.isnan())).all())


def _outcome(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[Tensor]]:
    def leaf(each: Tensor) -> Tensor:
        return each.detach().clone().requires_grad_(each.is_floating_point())

    args, kwargs = pytree.tree_map(leaf, (args, kwargs))
    with torch.enable_grad():
        results, structure = pytree.tree_flatten(model(*args, **kwargs))
    tensors = [each for each in results if isinstance(each, Tensor)]
    inputs = [each for each in pytree.tree_leaves((args, kwargs)) if each.requires_grad]
    sums = [each.double().sin().sum() for each in tensors if each.requires_grad]
    found = torch.autograd.grad(sums, inputs, allow_unused=True) if sums and inputs else ()
    gradients = [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=False)]
    return structure, [each.detach() for each in (*tensors, *gradients)]


def _repeated(value: Any, rows: int, index: list[int]) -> Any:
    def select(each: Tensor) -> Tensor:
        return each[index] if each.dim() and each.shape[0] == rows else each

    return pytree.tree_map(select, value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch.export from logging what it fails at: that is in the report."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch.fx", "torch._dynamo", "torch")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL)
    try:
        # It also prints graphs that it cannot finish.
        sink = io.StringIO()
        with warnings.catch_warnings(), redirect_stdout(sink), redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
