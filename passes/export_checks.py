"""What an exported graph would lose: state between calls, and whatever makes it compute something else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from passes.audit import assigned_outside_init, watch
from passes.randomness import random_state_kept
from passes.tracing import module_attributes
from passes.twin import Twin

# As of the whole rewrite: relative to the largest output.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


class NotExportedError(Exception):
    """Why there is no exported graph that does exactly what the model does."""


def kept_state(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
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


def check_same(
    model: nn.Module,
    graph: nn.Module,
    rows: int,
    index: list[int],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Compare outputs and gradients on some rows of the inputs, evaluated and in training."""
    args, kwargs = repeated((args, kwargs), rows, index)
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


def repeated(value: Any, rows: int, index: list[int]) -> Any:
    """Select rows of all tensors that have as many as the batch.

    Example:
        >>> repeated({"x": torch.tensor([1, 2])}, 2, [1, 1])
        {'x': tensor([2, 2])}

    """

    def select(each: Tensor) -> Tensor:
        return each[index] if each.dim() and each.shape[0] == rows else each

    return pytree.tree_map(select, value)
