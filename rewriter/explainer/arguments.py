"""What users pass beside the data, in the form that is worked with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from passes.user_code.observe import module_calls
from rewriter.diagnosis.run import doubled
from rewriter.engine.integers.lookups import holds_embedding
from rewriter.engine.problem import Inputs
from rewriter.inputs import as_inputs, check_like

Order = Literal["max", "min", "max_abs"]


def widened(inputs: Inputs, multi_input: bool) -> Any:
    """Return inputs in float64, in the form in which a user gives them."""
    wide = doubled(inputs)
    return wide if multi_input else wide[0]


def bytes_of(max_memory: Any) -> int | None:
    """Return what to plan with: a fifth less, for what an allocator keeps and fragments."""
    if max_memory is None:
        return None
    if not (isinstance(max_memory, int | float | np.integer) and 0 < max_memory < 2**63):
        raise RewriteError(f"max_memory: expected a positive number of bytes, got {max_memory!r}")
    return int(0.8 * max_memory)


def tolerance_of(check_additivity: Any, *, wide: bool) -> float | None:
    """Return the tolerance; as for shap whatever is false asks for no check."""
    if isinstance(check_additivity, str):
        raise RewriteError(f"check_additivity: expected a bool or a tolerance, got {check_additivity!r}")
    if not check_additivity:
        return None
    if isinstance(check_additivity, float | np.floating):
        return float(check_additivity)
    return 1e-8 if wide else 1e-4


def refuse_tensorflows(**given: Any) -> None:
    """Raise RewriteError for arguments of ``shap.DeepExplainer`` that mean nothing for PyTorch."""
    for name, value in given.items():
        if value is not None:
            raise RewriteError(
                f"{name}: expected None, got {type(value).__name__}; it belongs to TensorFlow 1, and "
                "this explains PyTorch models: leave it out"
            )


def refuse_integers(data: Inputs) -> None:
    """Raise RewriteError for inputs that have no multipliers."""
    if not any(each.is_floating_point() for each in data):
        raise RewriteError(
            "X: integers have no multipliers; explain (model, embedding) with the nn.Embedding that "
            "looks them up"
        )


def background_of(data: Any, model: nn.Module) -> Inputs:
    """Return the background as tensors, copies which nobody else writes to.

    Raises:
        RewriteError: if there is none, or nothing in it that can have attributions.

    """
    given = as_inputs(data, next(model.parameters(), None), "background")
    if not given or given[0].shape[0] == 0:
        raise RewriteError("background: expected at least one sample, got none")
    check_like(given, given, "background")
    if not any(each.is_floating_point() for each in given) and not holds_embedding(model):
        raise RewriteError(
            f"background: expected floating point numbers, got {given[0].dtype}; integers have no "
            "attributions, unless an nn.Embedding looks them up; if they are amounts, pass background.float()"
        )
    return [each.clone() for each in given]


def example_of(data: Any, model: nn.Module) -> Inputs | None:
    """Return what has the sizes of the background, None if that is nothing to explain with.

    Example:
        >>> [each.shape for each in example_of(np.zeros((5, 3)), nn.Linear(3, 1)) or ()]
        [torch.Size([5, 3])]

    """
    try:
        return as_inputs(data, next(model.parameters(), None), "background")
    except RuntimeError:
        # What is wrong is told later; weights may have no numbers, too.
        return None


def samples_of(X: Any, data: Inputs, multi_input: bool) -> Inputs:
    """Return samples as tensors.

    Raises:
        RewriteError: if they do not fit the background.

    """
    if isinstance(X, list | tuple) != multi_input:
        wanted = f"a list of {len(data)} tensors" if multi_input else "one tensor"
        raise RewriteError(f"X: expected {wanted} like the background, got {type(X).__name__}")
    samples = as_inputs(X, data, "X")
    check_like(samples, data, "X")
    return samples


def references_for(references: Any, samples: Inputs, data: Inputs, multi_input: bool) -> Inputs:
    """Return references of each sample, (M, N, *), as they are given or as a function makes them.

    Raises:
        RewriteError: if they do not fit the samples.

    Example:
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> references_for(lambda x: x.flip(1).unsqueeze(1), [x], [x], False)
        [tensor([[[2., 1.]]])]

    """
    if callable(references):
        # Copies, for what writes to its arguments.
        copies = [each.clone() for each in samples]
        references = references(copies if multi_input else copies[0])
    found = as_inputs(references, data, "references")
    check_like(found, data, "references", samples=samples[0].shape[0])
    return found


def check_outputs(outputs: Tensor, model: nn.Module, data: Inputs) -> None:
    """Raise RewriteError for outputs of the background that are nothing that can be explained.

    Args:
        outputs: of all rows.
        model: the user's, which gives them.
        data: the rows.

    """
    if outputs.dtype not in (torch.float32, torch.float64) or not outputs[0].numel():
        raise RewriteError(
            f"expected outputs in float32 or float64, at least one per sample, got {outputs.dtype} of "
            f"shape {tuple(outputs.shape)}; pass output=... to say which part of what the model returns "
            "is to be explained"
        )
    if not bool(outputs.isfinite().all()):
        row = int((~outputs.isfinite()).reshape(len(outputs), -1).any(1).nonzero()[0])
        calls = module_calls(model, tuple(each[row : row + 1] for each in data))[1]
        made = next(
            (call.name for call in calls if _is_finite(call.taken) and not _is_finite(call.given)), ""
        )
        raise RewriteError(
            f"expected finite outputs, got NaN or infinity for the background, first in row {row}, made in "
            f"{made or 'the model itself'}; leave such rows out, or keep it from dividing by zero, from the "
            "logarithm of what is not positive and the like"
        )


def _is_finite(tensors: list[Tensor]) -> bool:
    return all(bool(each.isfinite().all()) for each in tensors)


def chosen_outputs(
    run: Callable[[Inputs], Tensor], samples: Inputs, count: int, ranked: Any, order: Order
) -> Tensor:
    """Return the indices (M, K) of the outputs to explain.

    Args:
        run: returns the model's outputs.
        samples: the inputs of the model, M rows each.
        count: the number of outputs.
        ranked: None for all of them, or how many of each sample's.
        order: which come first.

    Raises:
        RewriteError: for another number or order.

    """
    rows = samples[0].shape[0]
    if ranked is not None and not (isinstance(ranked, int | np.integer) and ranked >= 1):
        raise RewriteError(f"ranked_outputs: expected None or a positive integer, got {ranked!r}")
    if ranked is not None and order not in ("max", "min", "max_abs"):
        raise RewriteError(f"output_rank_order: expected 'max', 'min' or 'max_abs', got {order!r}")
    if ranked is None or count == 1:
        return torch.arange(count).repeat(rows, 1).int()
    if rows == 0:
        return torch.empty(0, min(int(ranked), count), dtype=torch.long)
    outputs = run(samples)
    outputs = outputs.reshape(len(outputs), -1)
    values = outputs.abs() if order == "max_abs" else outputs
    return values.sort(descending=order != "min")[1][:, :ranked].cpu()


def mean_of(outputs: Tensor) -> Any:
    """Return the mean over rows as an array, or as a number.

    Example:
        >>> float(mean_of(torch.tensor([1.0, 3.0])))
        2.0

    """
    return outputs.mean(0).cpu().numpy()[()]
