"""Models around one call, whose rows are draws of a sample: with a batch, or a loop over rows.

Where the batch may stand is not guessed: the operation, called on all draws at once, has to give what it
gives for each.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.census.samples import DOUBLE, ROWS, Drawn

_DIMS = (
    "dim",
    "axis",
    "dims",
    "dim0",
    "dim1",
    "dim2",
    "axis0",
    "axis1",
    "axes",
    "source",
    "destination",
    "start_dim",
)


#: Where a tensor stands in a result, and whether it is complex.
Path = tuple[tuple[int, ...], bool]
_PARTS = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: DOUBLE}


def _has_slope(tensor: Tensor) -> bool:
    counts = tensor.layout == torch.strided and tensor.numel() > 0
    return counts and (tensor.is_floating_point() or tensor.is_complex())


class Around(nn.Module):
    """A call on features of a row, and a fixed linear map of what it returns.

    Args:
        drawn: the call.
        paths: where numbers with a derivative stand in what it returns, and whether they are complex.

    """

    #: Where the batch stands.
    name = "leading"
    #: One rounding of what the call returns, in its own type.
    rounding = 0.0

    def __init__(self, drawn: Drawn, paths: list[Path]) -> None:
        super().__init__()
        self.drawn = drawn
        self.places = list(drawn.rows)
        self.shapes = [tuple(drawn.rows[each][0].shape) for each in self.places]
        self.sizes = [drawn.rows[each][0].numel() for each in self.places]
        self.paths = paths
        self.register_buffer("weight", torch.ones(0, 0))

    def forward(self, x: Tensor) -> Any:
        return self.numbers(x).to(DOUBLE) @ self.weight

    def numbers(self, x: Tensor) -> Tensor:
        """Return all numbers of the result, a row for each of ``x``."""
        return self.flat(
            self.drawn.call(dict(zip(self.places, self.operands(x), strict=True)), self.constants()), x
        )

    def operands(self, x: Tensor) -> list[Tensor]:
        found, start = [], 0
        for size, shape in zip(self.sizes, self.shapes, strict=True):
            found.append(self.shaped(x[:, start : start + size], x, shape))
            start += size
        return found

    def shaped(self, part: Tensor, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return part.reshape(x.shape[0], *shape)

    def constants(self) -> list[Any]:
        return list(self.drawn.leaves)

    def flat(self, result: Any, x: Tensor) -> Tensor:
        found = []
        for path, is_complex in self.paths:
            part = self.batch_first(_at(result, path))
            found.append((torch.view_as_real(part) if is_complex else part).reshape(x.shape[0], -1))
        return torch.cat(found, 1) if len(found) > 1 else found[0]

    def batch_first(self, part: Tensor) -> Tensor:
        return part


class Padded(Around):
    """The batch stands before all dimensions of the operand that has most."""

    name = "padded"

    def shaped(self, part: Tensor, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        rank = max(each.dim() for each in self.drawn.leaves if isinstance(each, Tensor))
        return part.reshape(x.shape[0], *(1,) * (rank - len(shape)), *shape)


class Shifted(Around):
    """Dimensions that are counted from the front are one further back."""

    name = "shifted"

    def constants(self) -> list[Any]:
        args, kwargs = pytree.tree_unflatten(list(self.drawn.leaves), self.drawn.spec)
        first, *others = args
        args = (first, *(_shift(each) for each in others))
        kwargs = {key: _shift(each) if key in _DIMS else each for key, each in kwargs.items()}
        return list(pytree.tree_leaves((args, kwargs), is_leaf=lambda each: each is None))


class Expanded(Shifted):
    """Likewise, and all other tensors have the batch, too."""

    name = "expanded"

    def numbers(self, x: Tensor) -> Tensor:
        leaves = self.constants()
        for place, each in enumerate(leaves):
            if isinstance(each, Tensor) and place not in self.places:
                leaves[place] = each.expand(x.shape[0], *each.shape)
        return self.flat(self.drawn.call(dict(zip(self.places, self.operands(x), strict=True)), leaves), x)


class Trailing(Around):
    """The batch is the last dimension."""

    name = "trailing"

    def shaped(self, part: Tensor, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return part.reshape(x.shape[0], *shape).movedim(0, -1)

    def batch_first(self, part: Tensor) -> Tensor:
        return part.movedim(-1, 0)


class Merged(Around):
    """The batch is merged with the operand's own first dimension."""

    name = "merged"

    def shaped(self, part: Tensor, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return part.reshape(x.shape[0] * shape[0], *shape[1:])


class Flattened(Around):
    """All numbers of a row are in one dimension, over which the operation goes."""

    name = "flattened"

    def shaped(self, part: Tensor, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return part

    def numbers(self, x: Tensor) -> Tensor:
        return self.flat(self.drawn.along(dict(zip(self.places, self.operands(x), strict=True)), 1), x)


class FlattenedValues(Flattened):
    """Likewise, of which the values are returned beside their places."""

    name = "flattened"

    def numbers(self, x: Tensor) -> Tensor:
        operands = dict(zip(self.places, self.operands(x), strict=True))
        return self.flat(self.drawn.along(operands, 1)[0], x)


class RowByRow(Around):
    """A loop over the rows."""

    name = "loop"

    def numbers(self, x: Tensor) -> Tensor:
        return torch.stack([self.of_row(row) for row in x])

    def of_row(self, row: Tensor) -> Tensor:
        parts = row.split(self.sizes) if len(self.sizes) > 1 else [row]
        operands = [each.reshape(shape) for each, shape in zip(parts, self.shapes, strict=True)]
        result = self.drawn.call(dict(zip(self.places, operands, strict=True)), self.drawn.leaves)
        found = [_at(result, path) for path, _ in self.paths]
        return torch.cat(
            [
                (torch.view_as_real(each) if is_complex else each).reshape(-1)
                for each, (_, is_complex) in zip(found, self.paths, strict=True)
            ]
        )


FORMS: tuple[type[Around], ...] = (
    Around,
    Padded,
    Shifted,
    Expanded,
    Flattened,
    FlattenedValues,
    Trailing,
    Merged,
    RowByRow,
)


def inputs_of(drawn: Drawn) -> Tensor:
    """Return all draws as rows of features."""
    rows = [torch.cat([each[k].reshape(-1) for each in drawn.rows.values()]) for k in range(ROWS)]
    return torch.stack(rows).to(DOUBLE)


def models_of(drawn: Drawn) -> Iterator[Around]:
    """Yield models that compute the same as the operation on each draw; the first one is the most compact.

    A sample that does not run, or gives no finite numbers, has none.
    """
    derived = quietly(lambda: drawn.with_gradients())
    paths = _paths(derived)
    expected = quietly(lambda: torch.stack([_numbers(drawn.row(k), paths) for k in range(ROWS)]))
    again = quietly(lambda: torch.stack([_numbers(drawn.row(k), paths) for k in range(ROWS)]))
    if expected is None or again is None or not expected.numel():
        return
    truth, repeated = expected.to(DOUBLE), again.to(DOUBLE)
    if not truth.isfinite().all() or not torch.equal(truth, repeated):
        return
    if torch.equal(truth[:-1], truth[1:]):
        # Nothing that the samples vary matters.
        return
    x, turned = inputs_of(drawn), torch.tensor([1, 2, 3, 0])
    # Torch trusts what this is told of rows and writes outside of its memory.
    for form in FORMS if drawn.function is not torch.lu_unpack else (RowByRow,):
        model = form(drawn, paths)
        if all(
            _computes(model, x[order], truth[order])
            for order in (slice(None), turned, slice(0, 1), slice(0, 3))
        ):
            torch.manual_seed(1)
            model.rounding = _rounding(derived, paths)
            model.weight = torch.rand(truth.shape[1], 2, dtype=DOUBLE) + 0.5
            yield model.eval()


def _computes(model: Around, x: Tensor, expected: Tensor) -> bool:
    got = quietly(lambda: model.numbers(x.clone()))
    if got is None or got.shape != expected.shape:
        return False
    return torch.allclose(got.to(DOUBLE), expected, rtol=1e-9, atol=1e-11)


def quietly(run: Callable[[], Any]) -> Any:
    """Run what may be refused by torch; None if it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            return run()
        except Exception:
            return None


def _paths(result: Any) -> list[Path]:
    """Return where numbers with a slope stand in a result, and whether they are complex."""
    if isinstance(result, Tensor):
        return [((), result.is_complex())] if result.requires_grad and _has_slope(result) else []
    if isinstance(result, list | tuple):
        return [((k, *path), kind) for k, each in enumerate(result) for path, kind in _paths(each)]
    return []


def _numbers(result: Any, paths: list[Path]) -> Tensor:
    parts = [_at(result, path).detach() for path, _ in paths]
    return torch.cat(
        [(torch.view_as_real(each) if each.is_complex() else each).reshape(-1) for each in parts]
    )


def _rounding(result: Any, paths: list[Path]) -> float:
    types = [_at(result, path).dtype for path, _ in paths]
    return max(torch.finfo(_PARTS.get(each, each)).eps for each in types)


def _at(result: Any, path: tuple[int, ...]) -> Any:
    for k in path:
        result = result[k]
    return result


def _shift(value: Any) -> Any:
    if type(value) is int:
        return value + 1 if value >= 0 else value
    if isinstance(value, list | tuple) and all(type(each) is int for each in value):
        return type(value)(map(_shift, value))
    return value
