"""Which layer of two models that are not equal is the first to differ, in the order of the computation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rewriter.compiler.culprit import place_of
from rewriter.equivalence.correspondence import Correspondence
from rewriter.equivalence.differences import worst_difference
from rewriter.equivalence.probe import Conditions, layers_given
from rewriter.equivalence.report import Comparison


def first_layer(
    original: nn.Module,
    rewritten: nn.Module,
    inputs: Any,
    conditions: Conditions,
    failures: Sequence[Comparison],
    tolerance: float,
) -> str:
    """Name the first layer whose outputs differ, or, if none do, the one at which gradients begin to.

    Args:
        original: says which layers there are, and their order.
        rewritten: is not equal.
        inputs: on which that shows.
        conditions: under which it shows.
        failures: what was found to differ under these conditions.
        tolerance: of an output.

    Returns:
        A sentence; ``""`` where no layer can be told.

    Example:
        >>> one, other = nn.Sequential(nn.Tanh(), nn.ReLU()), nn.Sequential(nn.Tanh(), nn.Tanh())
        >>> first_layer(one, other, torch.tensor([-1.0]), Conditions(torch.float32, 0), (), 1e-5)
        'the first layer that differs is 1 (ReLU)'

    """
    try:
        expected = layers_given(original, inputs, conditions)
        got = layers_given(rewritten, inputs, conditions)
    except Exception:
        # What the models raise is among the failures.
        return ""
    modules = dict(original.named_modules())
    for name, tensors in expected.items():
        if not _differ(tensors, got.get(name, []), tolerance):
            continue
        if name:
            return f"the first layer that differs is {_shown(name, modules)}"
        # Of a model that is one layer there is nothing to tell.
        own = f"no layer that both run differs, but what {_shown(name, modules)} does with them"
        return own if len(modules) > 1 else ""
    owners = {each.place.rpartition(".")[0] for each in failures if each.kind == "parameter gradient"}
    last = next((name for name in reversed(expected) if name in owners), None)
    if last is None:
        return ""
    return f"all layers give the same; backwards, gradients begin to differ at {_shown(last, modules)}"


def different_weights(original: nn.Module, rewritten: nn.Module, parameters: Correspondence) -> list[str]:
    """Return the names of the original's parameters that have other numbers in the rewritten model.

    Example:
        >>> from rewriter.equivalence.correspondence import correspondence
        >>> one, other = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        >>> different_weights(one, other, correspondence(one, other))
        ['weight']

    """
    ours, theirs = (dict(each.named_parameters(remove_duplicate=False)) for each in (original, rewritten))
    found = []
    for each in parameters.counterparts:
        # What is seen in the memory of the original's cannot have other numbers.
        if each.problem or each.views or ours[each.name].is_meta:
            continue
        for group in each.groups:
            pieces = [theirs[name].detach() for name in group]
            joined = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
            if not _same(ours[each.name].detach(), joined):
                found.append(each.name)
                break
    return found


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and a.device == b.device and bool(torch.equal(a, b)))


def _differ(expected: Iterable[Tensor | None], got: Sequence[Tensor | None], tolerance: float) -> bool:
    """Whether tensors differ that can be told to be of one place in both models."""
    return any(
        a is not None
        and b is not None
        and a.shape == b.shape
        and worst_difference(a, b)[1] > (tolerance if a.is_floating_point() or a.is_complex() else 0.0)
        for a, b in zip(expected, got, strict=False)
    )


def _shown(name: str, modules: dict[str, nn.Module]) -> str:
    module = modules.get(name)
    return f"{name or 'the model itself'} ({type(module).__name__}){place_of(module)}"
