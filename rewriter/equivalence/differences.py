"""Take the difference of what two models made of the same input, and keep the worst of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rewriter.equivalence.correspondence import Correspondence
from rewriter.equivalence.probe import Conditions, Run
from rewriter.equivalence.report import Comparison, Kind
from rewriter.places import differences, numbers

# Where max |original| is below, a difference as large as the output itself may pass.
_TINY = 1e-6


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
        self._notes: dict[tuple[str, str], str] = {}

    @property
    def worst(self) -> tuple[Comparison, ...]:
        """One comparison per dtype, kind and place."""
        return tuple(self._worst.values())

    @property
    def notes(self) -> list[str]:
        """What a reader should know of how the numbers were compared, once for each place."""
        return list(self._notes.values())

    def outputs(self, conditions: Conditions, expected: Run, got: Run) -> None:
        """Compare structure and numbers of the outputs, final states among them."""
        different = differences(expected.output, got.output, "output")
        for place, problem in different:
            self.problem(conditions, "structure", place, problem)
        if not different:
            self._add(Comparison(short_name(conditions.dtype), "structure", "output", seed=conditions.seed))
        ours, theirs = numbers(expected.output, "output"), numbers(got.output, "output")
        compared = any(tensor.numel() for place, tensor in ours.items() if place in theirs)
        if expected.parameter_gradients and not compared:
            self.problem(conditions, "output", "output", "no tensor of the outputs could be compared")
        for place, tensor in ours.items():
            if place in theirs:
                self.numbers(conditions, "output", place, tensor, theirs[place])

    def buffers(self, conditions: Conditions, expected: Run, got: Run) -> None:
        """Compare what the call left in the buffers that both models have by name."""
        for name, buffer in expected.buffers.items():
            # One that was never written may hold anything, in both.
            if name in got.buffers and not (_is_nan(buffer) and _is_nan(got.buffers[name])):
                self.numbers(conditions, "buffer after the call", name, buffer, got.buffers[name])

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
        self._note(kind, place, expected, got)
        problem = ""
        if relative > allowed and _nothing_finite(expected, got):
            problem = "nothing finite to compare: NaN in both"
        elif relative > allowed:
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

    def _note(self, kind: Kind, place: str, expected: Tensor, got: Tensor) -> None:
        if not (expected.is_floating_point() or expected.is_complex()) or expected.numel() == 0:
            return
        a, b = _wide(expected), _wide(got)
        missing = int(_both_nan(a, b).sum())
        if 0 < missing < a.numel():
            note = f"{kind} {place}: NaN at the same {missing} places in both"
            self._notes.setdefault(("NaN", f"{kind} {place}"), note)
        largest = _largest(a)
        if kind == "output" and largest is not None and largest < _TINY:
            note = f"{kind} {place}: compared absolutely, for max |original| is {largest:.1e}"
            self._notes.setdefault(("tiny", place), note)

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
        return allowed if kind in ("output", "buffer after the call") else allowed * self.gradient_factor


def worst_difference(expected: Tensor, got: Tensor) -> tuple[float, float, tuple[int, ...]]:
    """Return the largest difference of two tensors of one shape: absolute, relative, and its index.

    Infinite where one of both is NaN or infinite and the other is not the same. NaN in both makes no
    difference, unless nothing else was there to compare: where all is NaN, the difference is infinite.

    Example:
        >>> worst_difference(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0]))
        (2.0, 0.5, (1,))
        >>> worst_difference(torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]))
        (0.0, 0.0, (0,))
        >>> worst_difference(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
        (inf, inf, (0,))

    """
    if expected.numel() == 0:
        return 0.0, 0.0, ()
    a, b = _wide(expected), _wide(got)
    same = a == b
    if not _nothing_finite(expected, got):
        same |= _both_nan(a, b)
    delta = torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    worst = int(delta.argmax())
    scale = max(1.0, _largest(a) or 0.0)
    absolute = delta.flatten()[worst].item()
    return (
        absolute,
        absolute / scale,
        tuple(int(k) for k in torch.unravel_index(torch.tensor(worst), a.shape)),
    )


def differs_from_itself(once: Run, again: Run, tolerance: float) -> list[str]:
    """Return the outputs that two runs of one model under the same conditions do not share.

    Example:
        >>> run = Run(torch.ones(1), {}, {}, {}, {})
        >>> differs_from_itself(run, Run(torch.zeros(1), {}, {}, {}, {}), 1e-5)
        ['output']

    """
    second = numbers(again.output, "output")
    return [
        place
        for place, tensor in numbers(once.output, "output").items()
        if place not in second
        or tensor.shape != second[place].shape
        or (
            not _nothing_finite(tensor, second[place])
            and worst_difference(tensor, second[place])[1] > tolerance
        )
    ]


def _nothing_finite(expected: Tensor, got: Tensor) -> bool:
    """Tell whether two tensors have NaN everywhere but where they are infinite."""
    a, b = _wide(expected), _wide(got)
    return bool(_both_nan(a, b).any()) and not bool((a.isfinite() & b.isfinite()).any())


def _both_nan(a: Tensor, b: Tensor) -> Tensor:
    """Tell where two wide tensors are NaN; a complex number has to be so in the same part of it."""
    if not a.is_complex():
        return a.isnan() & b.isnan()
    parts = [(a.real, b.real), (a.imag, b.imag)]
    same = [(x == y) | (x.isnan() & y.isnan()) for x, y in parts]
    return a.isnan() & b.isnan() & same[0] & same[1]


def _is_nan(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and bool(_wide(tensor).isnan().all())


def _largest(tensor: Tensor) -> float | None:
    finite = tensor.abs()[tensor.isfinite()]
    return finite.max().item() if finite.numel() else None


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
