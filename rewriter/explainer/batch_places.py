"""Where the rows of the batch are in what layers take and give, and a neuron in a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from passes.errors import RewriteError
from rewriter.engine.problem import Inputs

# Rows that are tried to tell where the batch is in what is merged with it.
_TRIED = 8


class Place(NamedTuple):
    """Where the rows of a tensor are.

    Args:
        dim: its dimension with the batch.
        each: how many there are of each row: more than 1 if the batch is merged with steps.
        steps_outside: the steps are the outer of the two.

    """

    dim: int
    each: int
    steps_outside: bool = False


def rows_first(value: Tensor, place: Place, rows: int) -> Tensor:
    """Bring the batch to dimension 0; the steps that it was merged with stay where it was.

    Example:
        >>> rows_first(torch.zeros(5, 2, 3), Place(1, 1), 2).shape
        torch.Size([2, 5, 3])
        >>> rows_first(torch.tensor([1, 2, 1, 2, 1, 2]), Place(0, 3, steps_outside=True), 2)
        tensor([[1, 1, 1],
                [2, 2, 2]])

    """
    if place.each == 1:
        return value.movedim(place.dim, 0)
    shape = (-1, rows) if place.steps_outside else (rows, -1)
    split = torch.unflatten(value, place.dim, shape)
    return split.movedim(place.dim + int(place.steps_outside), 0)


def rows_back(value: Tensor, place: Place) -> Tensor:
    """Undo :func:`rows_first`.

    Example:
        >>> x = torch.arange(12).view(6, 2)
        >>> place = Place(0, 3, steps_outside=True)
        >>> bool((rows_back(rows_first(x, place, 2), place) == x).all())
        True

    """
    if place.each == 1:
        return value.movedim(0, place.dim)
    split = value.movedim(0, place.dim + int(place.steps_outside))
    return split.flatten(place.dim, place.dim + 1)


def places_of(take: Callable[[Inputs], Inputs], inputs: Inputs, unclear: str) -> list[Place | None]:
    """Find the rows in tensors that a model makes on the way; None for one that is the same for all rows.

    Args:
        take: runs the model on some rows and returns the tensors.
        inputs: some rows of the model's inputs.
        unclear: what to say where the rows cannot be told.

    Raises:
        RewriteError: saying so, with the shape.

    Example:
        >>> places_of(lambda rows: [rows[0].T, torch.ones(2)], [torch.randn(3, 4)], "unclear")
        [Place(dim=1, each=1, steps_outside=False), None]

    """
    two, three = (take([torch.cat([x[:1]] * n) for x in inputs]) for n in (2, 3))
    found = [_dim(*each, unclear) for each in zip(two, three, strict=True)]
    for k, place in enumerate(found):
        if place is not None and place.each > 1:
            found[k] = _merged(take, inputs, two[k], k, place, unclear)
    return found


def _dim(two: Tensor, three: Tensor, unclear: str) -> Place | None:
    if two.shape == three.shape:
        return None
    alike = two.dim() == three.dim()
    differing = [d for d in range(two.dim()) if alike and two.shape[d] != three.shape[d]]
    if len(differing) != 1 or 3 * two.shape[differing[0]] != 2 * three.shape[differing[0]]:
        raise _unclear(unclear, two)
    return Place(differing[0], two.shape[differing[0]] // 2)


def _merged(
    take: Callable[[Inputs], Inputs], inputs: Inputs, two: Tensor, k: int, place: Place, unclear: str
) -> Place:
    """Tell rows and steps apart by what another row changes."""
    for row in range(1, min(len(inputs[0]), _TRIED)):
        other = take([torch.cat([x[:1], x[row : row + 1]]) for x in inputs])[k]
        if other.shape == two.shape:
            differs = (other != two).movedim(place.dim, 0)
            changed = differs.reshape(len(differs), -1).any(1)
            inside, outside = changed.view(2, -1)[0], changed.view(-1, 2)[:, 0]
            if bool(inside.any()) != bool(outside.any()):
                return place._replace(steps_outside=bool(inside.any()))
    raise _unclear(unclear, two)


def _unclear(unclear: str, value: Tensor) -> RewriteError:
    return RewriteError(
        f"{unclear}, of shape {tuple(value.shape)} for 2 rows; explain a layer that gets the batch in a "
        "dimension of its own"
    )


class Neuron:
    """Picks from what a layer gives, its batch brought to dimension 0.

    Args:
        layer: its name.
        index: the place in a row, an index or a tuple; None for all of it.

    Example:
        >>> import torch
        >>> neuron = Neuron("lstm", (0, 2))
        >>> neuron.find_rows(lambda rows: rows[0].transpose(0, 1), [torch.randn(3, 5, 4)])
        >>> neuron(torch.randn(5, 3, 4)).shape
        torch.Size([3])

    """

    def __init__(self, layer: str, index: int | tuple[Any, ...] | None) -> None:
        self.layer = layer
        index = () if index is None else index
        self.index = index if isinstance(index, tuple) else (index,)
        self.place = Place(0, 1)

    def __call__(self, output: Tensor) -> Tensor:
        """Return what is explained, batch first."""
        rows = rows_first(output, self.place, output.shape[self.place.dim] // self.place.each)
        try:
            picked: Tensor = rows[(slice(None), *self.index)]
        except (IndexError, TypeError):
            shown = self.index[0] if len(self.index) == 1 else self.index
            raise RewriteError(
                f"output: {self.layer} gives rows of shape {tuple(rows.shape[1:])}, got neuron {shown!r}; "
                "pass an index into that shape, or a tuple of them, one for each of its dimensions"
            ) from None
        return picked

    def find_rows(self, given: Callable[[Inputs], Tensor], inputs: Inputs) -> None:
        """Find out where the batch is.

        Args:
            given: what the layer gives when the model runs on some rows.
            inputs: some rows of the model's inputs.

        Raises:
            RewriteError: if that cannot be told.

        """
        unclear = f"{self.layer}: the rows of the batch cannot be told in its output"
        (place,) = places_of(lambda rows: [given(rows)], inputs, unclear)
        if place is None:
            raise RewriteError(
                f"{self.layer}: gives what is the same for all rows, of which nothing can be explained; as "
                "output=... take another layer"
            )
        self.place = place
