"""Tell which models shap and captum explain right as they are, so that they are left alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.pooling import _MaxPoolNd

from passes.user_code.clone import clone_structure
from passes.user_code.observe import module_calls
from rewriter.compiler.report import Report

# Rows that run: more than one, so that they can be told apart.
_ROWS = 2
# Of the largest number: batches of another size round differently, rows elsewhere differ by far more.
_SAME = 1e-4


def is_plain(module: nn.Module) -> bool:
    """Whether a module with a rule for its type is one for which the rules of shap and captum are right.

    They are no rules for a softmax, for windows that overlap, nor for what overwrites its input.

    Example:
        >>> is_plain(nn.ReLU()), is_plain(nn.ReLU(inplace=True)), is_plain(nn.MaxPool1d(3, stride=1))
        (True, False, False)

    """
    if isinstance(module, _MaxPoolNd):
        apart = module.stride == module.kernel_size and module.dilation in (1, (1,), (1, 1), (1, 1, 1))
        return apart and not module.return_indices
    return not isinstance(module, nn.Softmax) and not getattr(module, "inplace", False)


def explained_by_stock(
    model: nn.Module, rewritten: nn.Module, has_rule: Callable[[nn.Module], bool], args: Sequence[Any]
) -> bool:
    """Whether an explainer's own rules are all that a model needs.

    They are if all that became atoms are modules with such a rule, each of which runs once, on a tensor with
    the batch in dimension 0: both libraries part samples and references there.

    Args:
        model: the user's.
        rewritten: what :func:`rewriter.decompose` made of it.
        has_rule: whether the explainer has a rule for a module, and a right one.
        args: what the model is called with; what has as many rows as the first tensor has the batch.

    Example:
        >>> from rewriter import decompose
        >>> model, x = nn.Sequential(nn.Linear(3, 2), nn.Tanh()), torch.ones(4, 3)
        >>> [explained_by_stock(model, decompose(model), rule, [x]) for rule in (is_plain, lambda _: False)]
        [True, False]

    """
    report = Report.of(rewritten)
    modules = dict(model.named_modules(remove_duplicate=False))
    if report.layers or report.islands or report.declines:
        return False
    for each in report.operations:
        module = modules.get(each.name)
        if type(module).__name__ != each.operation or module is None or not has_rule(module):
            return False
    names = {name for name, module in model.named_modules() if has_rule(module)}
    try:
        return _have_batch_first(clone_structure(model).eval(), names, args)
    except Exception:
        # What is made up here may be nothing for the model. A rewritten one is right in any case.
        return False


def _have_batch_first(model: nn.Module, names: set[str], args: Sequence[Any]) -> bool:
    """Whether modules run once each, on the rows of one batch and then of another if given both."""
    count = next(len(each) for each in args if _has_rows(each))
    batched = [_has_rows(each) and len(each) == count for each in args]
    one = [each[:_ROWS] if has else each for each, has in zip(args, batched, strict=True)]
    other = [_others(each) if has else each for each, has in zip(one, batched, strict=True)]
    both = [torch.cat([a, b]) if has else a for a, b, has in zip(one, other, batched, strict=True)]
    runs = [_taken(model, names, each) for each in (one, other, both)]
    if any(len(names_called) != len(set(names_called)) for names_called, _ in runs):
        return False
    (first, a), (second, b), (third, c) = runs
    if not first == second == third:
        return False
    return all(_is_joined(*each) for each in zip(a, b, c, strict=True))


def _taken(model: nn.Module, names: set[str], args: Sequence[Any]) -> tuple[list[str], list[Tensor]]:
    copies = tuple(each.detach().clone() if isinstance(each, Tensor) else each for each in args)
    calls = [call for call in module_calls(model, copies)[1] if call.name in names]
    return [call.name for call in calls], [call.taken[0] for call in calls]


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _others(rows: Tensor) -> Tensor:
    return rows + 1 if rows.is_floating_point() else rows.flip(0)


def _is_joined(a: Tensor, b: Tensor, both: Tensor) -> bool:
    if a.dim() == 0 or a.shape[1:] != b.shape[1:] or both.shape != (len(a) + len(b), *a.shape[1:]):
        return False
    joined = torch.cat([a, b])
    return bool(((joined - both).abs() <= _SAME * joined.abs().max()).all()) if joined.numel() else True
