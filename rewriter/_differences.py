"""Take the difference of what two models made of the same input, and keep the worst of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rewriter._correspondence import Correspondence
from rewriter._equivalence_report import Comparison, Kind
from rewriter._places import differences, numbers
from rewriter._probe import Conditions, Run


class Findings:
    """The worst comparison of each place over all seeds.

    Args:
        tolerances: largest relative difference of an output in each dtype.
        gradient_factor: how many times as large that of a gradient may be.

    Example:
        >>> findings = Findings({torch.float32: 1e-5}, 10.0)
        >>> findings.numbers(Conditions(torch.float32, 0), "output", "output", torch.ones(2), torch.zeros(2))
        >>> findings.worst[0].absolute
        1.0

    """

    def __init__(self, tolerances: Mapping[torch.dtype, float], gradient_factor: float) -> None:
        self.tolerances = tolerances
        self.gradient_factor = gradient_factor
        self._worst: dict[tuple[str, Kind, str], Comparison] = {}

    @property
    def worst(self) -> tuple[Comparison, ...]:
        """One comparison per dtype, kind and place."""
        return tuple(self._worst.values())

    def outputs(self, conditions: Conditions, expected: Run, got: Run) -> None:
        """Compare structure and numbers of the outputs, final states among them."""
        different = differences(expected.output, got.output, "output")
        for place, problem in different:
            self.problem(conditions, "structure", place, problem)
        if not different:
            self._add(Comparison(short_name(conditions.dtype), "structure", "output", seed=conditions.seed))
        ours, theirs = numbers(expected.output, "output"), numbers(got.output, "output")
        if expected.parameter_gradients and not ours.keys() & theirs.keys():
            self.problem(conditions, "output", "output", "no tensor of the outputs could be compared")
        for place, tensor in ours.items():
            if place in theirs:
                self.numbers(conditions, "output", place, tensor, theirs[place])

    def input_gradients(self, conditions: Conditions, expected: Run, got: Run) -> None:
        """Compare the gradients with respect to each floating input."""
        for place, gradient in expected.input_gradients.items():
            self.numbers(conditions, "input gradient", place, gradient, got.input_gradients[place])

    def parameter_gradients(
        self, conditions: Conditions, expected: Run, got: Run, parameters: Correspondence
    ) -> None:
        """Compare the gradients with respect to each parameter; one without a counterpart must not matter."""
        kind: Kind = "parameter gradient"
        for each in parameters.counterparts:
            gradient = expected.parameter_gradients[each.name]
            if each.groups and not each.problem:
                self.numbers(conditions, kind, each.name, gradient, each.gradient(got.parameter_gradients))
            elif each.groups or bool((gradient != 0).any()):
                self.problem(conditions, kind, each.name, each.problem)
        for name in parameters.others:
            if bool((got.parameter_gradients[name] != 0).any()):
                problem = "has no counterpart in the original, and the outputs depend on it"
                self.problem(conditions, kind, f"{name} (rewritten)", problem)

    def numbers(self, conditions: Conditions, kind: Kind, place: str, expected: Tensor, got: Tensor) -> None:
        """Compare two tensors."""
        if expected.shape != got.shape:
            problem = f"expected shape {tuple(expected.shape)}, got {tuple(got.shape)}"
            self.problem(conditions, kind, place, problem)
            return
        allowed = self._allowed(conditions.dtype, kind, expected)
        absolute, relative, index = worst_difference(expected, got)
        problem = ""
        if relative > allowed:
            problem = (
                f"at {list(index)} expected {expected[index].item():.8g}, got {got[index].item():.8g}; the "
                f"relative difference {relative:.1e} is above {allowed:.0e}"
            )
        dtype, seed = short_name(conditions.dtype), conditions.seed
        self._add(Comparison(dtype, kind, place, absolute, relative, allowed, seed, index, problem))

    def problem(self, conditions: Conditions, kind: Kind, place: str, problem: str) -> None:
        """Note what no difference can be taken of."""
        dtype, seed = short_name(conditions.dtype), conditions.seed
        self._add(Comparison(dtype, kind, place, math.inf, math.inf, 0.0, seed, (), problem))

    def _add(self, comparison: Comparison) -> None:
        key = comparison.dtype, comparison.kind, comparison.place
        best = self._worst.get(key)
        if best is None or (best.equal, -best.relative) > (comparison.equal, -comparison.relative):
            self._worst[key] = comparison

    def _allowed(self, dtype: torch.dtype, kind: Kind, expected: Tensor) -> float:
        if not (expected.is_floating_point() or expected.is_complex()):
            return 0.0
        # A model may return less precision than it runs in.
        allowed = max(self.tolerances[dtype], self.tolerances.get(expected.dtype, 0.0))
        return allowed if kind == "output" else allowed * self.gradient_factor


def worst_difference(expected: Tensor, got: Tensor) -> tuple[float, float, tuple[int, ...]]:
    """Return the largest difference of two tensors of one shape: absolute, relative, and its index.

    Infinite where one of both is NaN, or infinite and not the other.

    Example:
        >>> worst_difference(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0]))
        (2.0, 0.5, (1,))

    """
    if expected.numel() == 0:
        return 0.0, 0.0, ()
    a, b = _wide(expected), _wide(got)
    delta = torch.where(a == b, 0.0, (a - b).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    worst = int(delta.argmax())
    finite = a.abs()[a.isfinite()]
    scale = max(1.0, finite.max().item()) if finite.numel() else 1.0
    absolute = delta.flatten()[worst].item()
    return (
        absolute,
        absolute / scale,
        tuple(int(k) for k in torch.unravel_index(torch.tensor(worst), a.shape)),
    )


def _wide(tensor: Tensor) -> Tensor:
    dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    return dense.cpu().to(torch.complex128 if dense.is_complex() else torch.float64)


def short_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype as numpy has it.

    Example:
        >>> short_name(torch.float64)
        'float64'

    """
    return str(dtype).removeprefix("torch.")
