"""Which parameters of a rewritten model answer to which of the original."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rewriter.compiler.report import Report


class View(NamedTuple):
    """How a tensor lies in its memory."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> View:
        """Return the view that a tensor is."""
        return cls(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))


@dataclass(frozen=True)
class Counterpart:
    """What became of one parameter.

    Args:
        name: its name in the original.
        groups: names in the rewritten model. The parameters of one group are pieces, in order along
            dimension 0, as split gates are; groups are uses of one tied parameter, whose gradients
            add up.
        problem: why there is nothing to compare it with, or ``""``.
        views: where its memory is seen in another shape, what each of the parameters in the groups sees.

    Example:
        >>> Counterpart("weight", (("fc_0.weight", "fc_1.weight"),)).problem
        ''

    """

    name: str
    groups: tuple[tuple[str, ...], ...]
    problem: str = ""
    views: tuple[View, ...] = field(default=(), repr=False)

    def gradient(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Put the gradient together from those of the rewritten model.

        Example:
            >>> split = Counterpart("weight", (("fc_0.weight", "fc_1.weight"),))
            >>> split.gradient({"fc_0.weight": torch.ones(1), "fc_1.weight": torch.zeros(2)})
            tensor([1., 0., 0.])

        """
        if self.views:
            return _through_memory(self.views, [gradients[name] for group in self.groups for name in group])
        joined = [
            torch.cat([gradients[name] for name in group]) if len(group) > 1 else gradients[group[0]]
            for group in self.groups
        ]
        return torch.stack(joined).sum(0)


@dataclass(frozen=True)
class Correspondence:
    """All parameters of both models.

    Args:
        counterparts: one for each parameter of the original.
        others: parameters of the rewritten model that answer to none of the original.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> correspondence(model, nn.Sequential(model)).counterparts[0]
        Counterpart(name='weight', groups=(('0.weight',),), problem='')

    """

    counterparts: tuple[Counterpart, ...]
    others: tuple[str, ...]


def correspondence(original: nn.Module, rewritten: nn.Module) -> Correspondence:
    """Pair the parameters: the same tensor, else where the report says it is, the same memory, else by name.

    Example:
        >>> correspondence(nn.Linear(2, 2, bias=False), nn.Linear(2, 2)).others
        ('bias',)

    """
    there = dict(rewritten.named_parameters(remove_duplicate=False))
    first_names: dict[int, str] = {}
    for name, parameter in there.items():
        first_names.setdefault(id(parameter), name)
    seers: dict[int, list[str]] = {}
    for name in first_names.values():
        seers.setdefault(_memory(there[name]), []).append(name)
    report = getattr(rewritten, "report", None)
    reported = report.parameter_names if isinstance(report, Report) else {}
    counterparts = []
    for names, parameter in _named(original):
        shared = first_names.get(id(parameter))
        copies = [reported[name] for name in names if _holds_copies(reported.get(name), there, parameter)]
        groups: list[tuple[str, ...]] = [(shared,), *copies] if shared else copies
        seen = [] if groups else seers.get(_memory(parameter), [])
        if seen:
            views = (View.of(parameter), *(View.of(there[name]) for name in seen))
            counterparts.append(Counterpart(names[0], tuple((name,) for name in seen), "", views))
            continue
        if not groups:
            groups += [(name,) for name in names if name in there][:1]
        counterparts.append(_checked(names[0], groups, parameter, there))
    paired = {id(there[name]) for each in counterparts for group in each.groups for name in group}
    others = tuple(names[0] for names, parameter in _named(rewritten) if id(parameter) not in paired)
    return Correspondence(tuple(counterparts), others)


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _through_memory(views: Sequence[View], gradients: Sequence[Tensor]) -> Tensor:
    """Add gradients of views of one tensor's memory up to that of the tensor."""
    ends = [v.offset + sum((n - 1) * s for n, s in zip(v.shape, v.strides, strict=True)) + 1 for v in views]
    memory = gradients[0].new_zeros(max(ends))
    for view, gradient in zip(views[1:], gradients, strict=True):
        memory.as_strided(*view).add_(gradient)
    return memory.as_strided(*views[0])


def _named(model: nn.Module) -> list[tuple[list[str], nn.Parameter]]:
    """Return each parameter once, with all its names."""
    found: dict[int, tuple[list[str], nn.Parameter]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), ([], parameter))[0].append(name)
    return list(found.values())


def _holds_copies(
    names: tuple[str, ...] | None, there: Mapping[str, nn.Parameter], parameter: nn.Parameter
) -> bool:
    return bool(names) and all(name in there and there[name] is not parameter for name in names or ())


def _checked(
    name: str, groups: Iterable[tuple[str, ...]], parameter: nn.Parameter, there: Mapping[str, nn.Parameter]
) -> Counterpart:
    if not groups:
        return Counterpart(
            name,
            (),
            "no counterpart in the rewritten model: neither the same tensor, nor named in its report, nor a "
            "parameter of this name",
        )
    for group in groups:
        pieces = [there[piece] for piece in group]
        shape = (
            (sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:])
            if len(group) > 1
            else pieces[0].shape
        )
        for what, expected, got in (
            ("shape", tuple(parameter.shape), tuple(shape)),
            ("dtype", parameter.dtype, pieces[0].dtype),
            ("device", parameter.device, pieces[0].device),
        ):
            if expected != got:
                return Counterpart(
                    name, tuple(groups), f"expected {what} {expected}, got {got} for {', '.join(group)}"
                )
    return Counterpart(name, tuple(groups))
