"""Example inputs of an export: their names, which axis is the batch, and the same inputs at other sizes."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from passes.errors import RewriteError
from passes.recurrent.lengths import as_arguments
from passes.user_code.source import where_failed
from rewriter.onnx.containers import leaves_of, tensors_of, with_leaves

# More ways to choose the batch axes than are worth a run of the model each.
_MANY = 100

Axes = tuple[int | None, ...]
Run = Callable[["Example"], list[Tensor]]
Parting = Callable[["Example", "Example"], str]


@dataclass(frozen=True)
class Example:
    """Arguments of a model, and the tensors among them in the order in which they occur.

    Args:
        args: positional arguments.
        kwargs: keyword arguments.
        names: a name for each tensor, from the signature of the model.

    Example:
        >>> example = read_example(nn.LSTM(3, 2), (torch.ones(4, 5, 3), (torch.ones(1, 5, 2),) * 2))
        >>> example.names
        ('input', 'hx_0', 'hx_1')
        >>> example.resized([{1: 7}, {1: 7}, {1: 7}]).tensors[0].shape
        torch.Size([4, 7, 3])

    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return tensors_of((self.args, self.kwargs))

    def with_names(self, names: Sequence[str]) -> Example:
        """Return the same inputs under other names.

        Raises:
            RewriteError: unless there is one name for each tensor.

        """
        check_names("input_names", names, len(self.names))
        return Example(self.args, self.kwargs, tuple(names))

    def with_tensors(self, tensors: Sequence[Tensor]) -> Example:
        """Return the same arguments with other tensors in them."""
        following = iter(tensors)
        args, kwargs = with_leaves(
            (self.args, self.kwargs), lambda leaf: next(following) if isinstance(leaf, Tensor) else leaf
        )
        return Example(args, kwargs, self.names)

    def resized(self, sizes: Sequence[Mapping[int, int]]) -> Example:
        """Return the example with, for each tensor, other sizes of some axes."""
        resized = []
        for tensor, wanted in zip(self.tensors, sizes, strict=True):
            for axis, size in wanted.items():
                tensor = _resize(tensor, axis, size)
            resized.append(tensor)
        return self.with_tensors(resized)


def read_example(model: nn.Module, example_inputs: Any) -> Example:
    """Name the tensors of ``example_inputs`` and give each a storage of its own, on the CPU.

    Raises:
        RewriteError: for arguments that do not fit the model's signature, that hold no tensor, or that
            hold a packed sequence.

    """
    args, kwargs = as_arguments(example_inputs)
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise RewriteError(f"example_inputs do not fit {type(model).__name__}.forward: {error}") from error
    # torch.export takes keyword arguments in the order of the signature.
    order = [*signature.parameters, *kwargs]
    kwargs = dict(sorted(kwargs.items(), key=lambda item: order.index(item[0])))
    names: list[str] = []
    for argument, value in [*zip(_positional_names(signature), args, strict=False), *kwargs.items()]:
        names += _names(argument, value)
    if any(isinstance(leaf, PackedSequence) for _, leaf in leaves_of((args, kwargs))):
        raise RewriteError(
            "export_onnx: example_inputs hold a PackedSequence, which ONNX has no type for; let the model "
            "take padded sequences and their lengths, and pack them in forward: the file then takes both"
        )
    example = Example(args, kwargs, tuple(names))
    if len(example.tensors) != len(names) or not names:
        raise RewriteError(
            f"export_onnx: expected tensors in example_inputs, found {len(example.tensors)} in "
            f"{len(names)} argument(s); pass each input as a tensor, in tuples, lists or mappings"
        )
    return example.with_tensors([tensor.detach().cpu().clone() for tensor in example.tensors])


def check_names(argument: str, names: Sequence[str], count: int, taken: Sequence[str] = ()) -> None:
    """Raise RewriteError unless ``names`` are ``count`` different names, none of them ``taken``."""
    right = isinstance(names, Sequence) and not isinstance(names, str) and len(names) == count
    if not right or any(not isinstance(name, str) or not name for name in names):
        raise RewriteError(f"{argument}: expected {count} different name(s), got {names!r}")
    if len(set(names)) != count:
        raise RewriteError(f"{argument}: expected {count} different name(s), got {list(names)}; pass others")
    both = sorted(set(names) & set(taken))
    if both:
        raise RewriteError(
            f"{argument}: expected names that no input has, got {', '.join(both)}; pass other {argument}"
        )


def different(names: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """Return names of which no two are the same, none of them empty or ``taken``.

    Example:
        >>> different(["x", "a", "a", ""], taken=["x"])
        ['x_output', 'a', 'a_output', 'output']

    """
    made: list[str] = []
    for name in names:
        further = (f"{name}_output_{k}" for k in itertools.count(1))
        for each in itertools.chain([name or "output", f"{name}_output"], further):
            if each not in (*taken, *made) and (each == name or each not in names):
                made.append(each)
                break
    return made


def infer_batch_axes(run: Run, example: Example, parting: Parting = lambda *_: "") -> Axes:
    """Find which axis of each tensor is the batch, by what the model does with every row twice.

    Args:
        run: the model; returns the tensors among its outputs.
        example: inputs of any batch size.
        parting: the line after which the model runs other code for one example than for another, or ``""``.

    Returns:
        An axis, or None for a tensor without batch, for each tensor of ``example``.

    Raises:
        RewriteError: if twice the rows never give twice the outputs.

    Example:
        >>> double = read_example(nn.LSTM(3, 2), torch.ones(4, 5, 3))
        >>> infer_batch_axes(lambda each: [each.tensors[0] * 2], double)
        (0,)

    """
    single = run(example)
    failure = ""
    candidates = _candidates(example.tensors)[:_MANY]
    for k, axes in enumerate(candidates):
        try:
            outputs = run(_repeated(example, axes, 2))
        except Exception as error:  # whatever the user's code raises
            said = f"{type(error).__name__}: {error}, {where_failed(error)}"
            failure = failure if k else f" (with the batch first: {said})"
            continue
        if _is_twice(single, outputs):
            return axes
    shapes = ", ".join(
        f"{name} {tuple(tensor.shape)}" for name, tensor in zip(example.names, example.tensors, strict=True)
    )
    lines = (_branch(run, parting, example, axes) for axes in candidates)
    line = next(filter(None, lines), "")
    where = f" (at {line} the model's code goes another way for other numbers of rows)" if line else ""
    raise RewriteError(
        f"export_onnx: no axis of the inputs ({shapes}) is a batch: twice the rows do not give twice the "
        f"outputs, so the batch dimension is frozen{where}{failure}; give the inputs a batch dimension, make "
        "the model take any batch size, name the axes: batch_axes={'" + example.names[0] + "': 0}, or fix "
        "all sizes: batch_axes={}"
    )


def _repeated(example: Example, axes: Axes, times: int) -> Example:
    """Take every row several times, side by side, for a model that takes its rows only in some order."""
    return example.with_tensors(
        [
            tensor if axis is None else tensor.repeat_interleave(times, axis)
            for tensor, axis in zip(example.tensors, axes, strict=True)
        ]
    )


def _branch(run: Run, parting: Parting, example: Example, axes: Axes) -> str:
    """Return the line of a branch on the number of rows, if the axes are a batch on one side of it."""
    one = example.resized([{} if axis is None else {axis: 1} for axis in axes])
    double = _repeated(example, axes, 2)
    for each in (one, double):
        try:
            holds = _is_twice(run(each), run(_repeated(each, axes, 2)))
        except Exception:  # whatever the user's code raises
            continue
        if holds:
            return parting(example, double) or parting(example, one)
    return ""


def _candidates(tensors: Sequence[Tensor]) -> list[Axes]:
    """All ways to choose axis 0, axis 1 or none of each tensor, of one size, likely ones first."""
    options: list[list[int | None]] = [[*range(min(2, tensor.dim())), None] for tensor in tensors]
    found = []
    for axes in itertools.islice(itertools.product(*options), 100 * _MANY):
        sizes = {tensor.shape[axis] for tensor, axis in zip(tensors, axes, strict=True) if axis is not None}
        if len(sizes) == 1:
            found.append(axes)
    return sorted(found, key=lambda axes: (axes.count(None), sum(axis or 0 for axis in axes)))


def _is_twice(single: list[Tensor], double: list[Tensor]) -> bool:
    """Whether each output holds everything twice along one axis, or does not depend on the batch."""
    if len(single) != len(double):
        return False
    along = [_doubled_axis(a, b) for a, b in zip(single, double, strict=True)]
    if all(axis is None for axis in along):
        return False
    return all(
        close(a, half)
        for a, b, axis in zip(single, double, along, strict=True)
        for half in ((b,) if axis is None else _halves(b, axis))
    )


def _halves(tensor: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    rows = torch.arange(0, tensor.shape[axis], 2)
    return tensor.index_select(axis, rows), tensor.index_select(axis, rows + 1)


def _doubled_axis(a: Tensor, b: Tensor) -> int | None:
    if a.dim() != b.dim():
        return None
    return next((axis for axis in range(a.dim()) if b.shape[axis] == 2 * a.shape[axis] > 0), None)


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two runs of a model gave the same, up to what rounding does."""
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    bound = 1e-4 * max(1.0, float(a.abs().max()) if a.numel() else 0.0)
    return torch.allclose(a, b, rtol=0.0, atol=bound, equal_nan=True)


def _resize(tensor: Tensor, axis: int, size: int) -> Tensor:
    """Repeat along ``axis``, in order, each repetition of a floating-point tensor smaller than the last."""
    own = tensor.shape[axis]
    new = torch.arange(size)
    index = new * own // size if size > own else new
    resized = tensor.index_select(axis, index)
    if not tensor.is_floating_point():
        return resized
    shape = [1] * tensor.dim()
    shape[axis] = size
    repetition = new - torch.searchsorted(index, index)
    return resized / (1 + repetition).reshape(shape).to(tensor.dtype)


def _positional_names(signature: inspect.Signature) -> Iterator[str]:
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            yield from (f"{name}_{k}" for k in itertools.count())
        yield name


def _names(argument: str, value: Any) -> list[str]:
    """Name the tensors in one argument after it and, if there are several, after their place in it."""
    return ["_".join((argument, *place)) for place, leaf in leaves_of(value) if isinstance(leaf, Tensor)]
