"""The atom of what is linear in the sorted elements along a dimension."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from passes.leaves import Atom
from passes.operations.operation import function_named


class OrderStatistics(Atom):
    """Sorted elements along a dimension, some of them, or what lies between two of them.

    Args:
        function: ``"sort"``, ``"topk"``, ``"kthvalue"``, ``"median"``, ``"nanmedian"``, ``"quantile"`` or
            ``"nanquantile"``.
        dim: the dimension.
        options: further arguments of the function, known before the model runs.

    Example:
        >>> OrderStatistics("topk", -1, k=2)(torch.tensor([1.0, 3.0, 2.0]))
        tensor([3., 2.])

    """

    def __init__(self, function: str, dim: int, **options: Any) -> None:
        super().__init__()
        self.function = function
        self.dim = dim
        self.options = options

    def forward(self, input: Tensor) -> Tensor:
        """Return the values of ``input``, any shape."""
        options = dict(self.options)
        if "q" in options:
            options["q"] = torch.as_tensor(options["q"], dtype=input.dtype, device=input.device)
        found = function_named(self.function)(input, dim=self.dim, **options)
        return found if isinstance(found, Tensor) else found[0]

    @property
    def removes(self) -> bool:
        """Whether the dimension is no longer there."""
        if self.function in ("sort", "topk") or self.options.get("keepdim", False):
            return False
        return not isinstance(self.options.get("q"), list | tuple)

    @property
    def leads(self) -> bool:
        """Whether what is made along the dimension stands in front of all others."""
        return isinstance(self.options.get("q"), list | tuple)

    def places(self, n: int) -> list[dict[int, float]]:
        """Return of what each result is made: shares of sorted elements, the largest of which has place 0."""
        return [dict(each) for each in _PLACES[self.function](n, **self.options)]

    def extra_repr(self) -> str:
        """Show the function and its options."""
        options = (f"{key}={value}" for key, value in self.options.items())
        return ", ".join([self.function, f"dim={self.dim}", *options])


def _sort(n: int, descending: bool = False, **_: Any) -> list[dict[int, float]]:
    return [{place: 1.0} for place in (range(n) if descending else reversed(range(n)))]


def _topk(n: int, k: int, largest: bool = True, **_: Any) -> list[dict[int, float]]:
    return _sort(n, descending=largest)[:k]


def _kthvalue(n: int, k: int, **_: Any) -> list[dict[int, float]]:
    return [{n - k: 1.0}]


def _median(n: int, **_: Any) -> list[dict[int, float]]:
    return _kthvalue(n, (n - 1) // 2 + 1)


def _quantile(n: int, q: Any, interpolation: str = "linear", **_: Any) -> list[dict[int, float]]:
    return [
        _between(n, each * (n - 1), interpolation) for each in (q if isinstance(q, list | tuple) else (q,))
    ]


def _between(n: int, place: float, interpolation: str) -> dict[int, float]:
    below, above = n - 1 - math.floor(place), n - 1 - math.ceil(place)
    share = {
        "linear": place - math.floor(place),
        "lower": 0.0,
        "higher": 1.0,
        "midpoint": 0.5,
        "nearest": float(round(place) > math.floor(place)),
    }[interpolation]
    return {below: 1.0} if below == above else {below: 1 - share, above: share}


_PLACES: Mapping[str, Callable[..., list[dict[int, float]]]] = {
    "sort": _sort,
    "topk": _topk,
    "kthvalue": _kthvalue,
    "median": _median,
    "nanmedian": _median,
    "quantile": _quantile,
    "nanquantile": _quantile,
}
