"""Calls that sort, or read values off sorted elements."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from passes.operations.contract import Build, Rule, Textbook, Varies, holds_nodes, is_number, is_plain, pulled
from passes.operations.maxima.extrema import Found
from passes.operations.operation import Operation, function_named, nonlinear
from passes.operations.order_statistics.atom import OrderStatistics
from passes.operations.order_statistics.rule import order_pull
from passes.operations.whole import is_whole, lower_whole


class SortedWithIndices(nn.Module):
    """Values of the order with the places where they are found, which are discrete.

    Args:
        atom: of the values.

    Example:
        >>> SortedWithIndices(OrderStatistics("sort", -1))(torch.tensor([3.0, 2.0])).indices
        tensor([1, 0])

    """

    def __init__(self, atom: OrderStatistics) -> None:
        super().__init__()
        self.values = atom

    def forward(self, input: Tensor) -> Found:
        """Return values and indices."""
        atom = self.values
        values = atom(input)
        if atom.function == "sort":
            places = torch.argsort(input, dim=atom.dim, **atom.options)
        elif atom.function == "topk":
            line = torch.atleast_1d(input)  # type: ignore[no-untyped-call]
            largest = torch.argsort(line, dim=atom.dim, descending=atom.options["largest"])
            places = torch.reshape(largest.narrow(atom.dim, 0, atom.options["k"]), values.shape)
        else:
            value = values if atom.options["keepdim"] else values.unsqueeze(atom.dim)
            places = torch.argmax((input == value).int(), atom.dim, atom.options["keepdim"])
        return Found(values, places)


def _along(function: str, varies: Varies, input: Any, dim: Any = None, **options: Any) -> Textbook | None:
    if type(dim) is not int or holds_nodes(options):
        return None
    return SortedWithIndices(OrderStatistics(function, dim, **options)), (input,)


def _sort(
    varies: Varies, input: Any, dim: Any = -1, descending: Any = False, stable: Any = False
) -> Textbook | None:
    # Elements that are equal may change places, which changes no value.
    return _along("sort", varies, input, dim, descending=descending, stable=bool(stable))


def _msort(varies: Varies, input: Any) -> Textbook:
    return OrderStatistics("sort", 0), (input,)


def _topk(
    varies: Varies, input: Any, k: Any, dim: Any = -1, largest: Any = True, sorted: Any = True
) -> Textbook | None:
    return _along("topk", varies, input, dim, k=k, largest=largest) if sorted is True else None


def _kthvalue(varies: Varies, input: Any, k: Any, dim: Any = -1, keepdim: Any = False) -> Textbook | None:
    return _along("kthvalue", varies, input, dim, k=k, keepdim=keepdim)


def _middle(
    function: str, varies: Varies, input: Any, dim: Any = None, keepdim: Any = False
) -> Textbook | None:
    if is_whole(dim):
        return lower_whole(partial(_middle_of_line, function), input, keepdim=keepdim)
    return _along(function, varies, input, dim, keepdim=keepdim)


def _middle_of_line(function: str, x: Any) -> Any:
    return function_named(function)(x, dim=-1)[0]


def _quantile(
    function: str,
    varies: Varies,
    input: Any,
    q: Any,
    dim: Any = None,
    keepdim: Any = False,
    interpolation: Any = "linear",
) -> Textbook | None:
    if isinstance(q, Tensor) and not varies(q):
        q = q.tolist()
    known = all(map(is_number, q)) if isinstance(q, list) else is_number(q)
    if known and is_whole(dim) and is_plain(interpolation):
        # Several quantiles stand in front of the dimensions, of which none is left.
        of_line = partial(function_named(function), q=q, dim=-1, interpolation=interpolation)
        return None if isinstance(q, list) else lower_whole(of_line, input, keepdim=keepdim)
    if not known or type(dim) is not int or holds_nodes(keepdim, interpolation):
        return None
    return OrderStatistics(function, dim, q=q, keepdim=keepdim, interpolation=interpolation), (input,)


CALLS: tuple[Operation, ...] = (
    nonlinear("sort(input, dim=-1, descending=False, stable=False)", lower=_sort),
    nonlinear("msort(input)", lower=_msort),
    nonlinear("topk(input, k, dim=-1, largest=True, sorted=True)", lower=_topk),
    nonlinear("kthvalue(input, k, dim=-1, keepdim=False)", lower=_kthvalue),
    *(
        nonlinear(f"{name}(input, dim=None, keepdim=False)", lower=partial(_middle, name))
        for name in ("median", "nanmedian")
    ),
    *(
        nonlinear(
            f"{name}(input, q, dim=None, keepdim=False, *, interpolation='linear')",
            lower=partial(_quantile, name),
        )
        for name in ("quantile", "nanquantile")
    ),
)
MODULES: Mapping[type[nn.Module], Build] = {}
RULES: Mapping[type[nn.Module], Rule] = {OrderStatistics: pulled(order_pull)}
