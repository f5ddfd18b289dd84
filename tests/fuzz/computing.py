"""What ``decompose`` returns computes what the original does, twice, and leaves the original alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from rewriter import decompose
from tests.fuzz.judging import HELD, Violation, judged, must_name, picture, unchanged
from tests.fuzz.programs import Program
from tests.support.compare import TOLERANCE, assert_close, leaves, skeleton

Found = tuple[Any, dict[str, Tensor]]


def run(model: nn.Module, inputs: list[Tensor], *, gradients: bool) -> Found:
    """Return what a model returns, and its numbers, with the gradients of the inputs if asked for."""
    wanted = [each.detach().clone().requires_grad_(gradients) for each in inputs]
    torch.manual_seed(5)
    # A model may write to its inputs, which torch forbids for what needs gradients itself.
    with torch.set_grad_enabled(gradients):
        output = model(*(each.clone() for each in wanted))
    found = leaves(output)
    moving = [each for each in found.values() if each.requires_grad]
    numbers = {place: each.detach().clone() for place, each in found.items()}
    if moving and gradients:
        weighted = [(each * torch.linspace(0.5, 1.5, each.numel()).view_as(each)).sum() for each in moving]
        try:
            pulled = torch.autograd.grad(sum(weighted, torch.zeros(())), wanted, allow_unused=True)
        except RuntimeError:
            # Of code whose gradient torch refuses to compute there is none to compare.
            return output, numbers
        numbers |= {
            f"gradient {k}": torch.zeros_like(each) if got is None else got
            for k, (each, got) in enumerate(zip(wanted, pulled, strict=True))
        }
    return output, numbers


def compare(expected: Found, got: Found, what: str) -> None:
    """Raise a violation unless structure, numbers and gradients are equal to rounding."""
    if skeleton(got[0]) != skeleton(expected[0]):
        raise Violation(f"{what} returns another structure", f"{skeleton(got[0])}, {skeleton(expected[0])}")
    for place, numbers in expected[1].items():
        if place not in got[1]:
            raise Violation(f"{what} has no {place}")
        # Gradients sum over all steps.
        tolerance = TOLERANCE[torch.float64] * (10 if place.startswith("gradient") else 1)
        # Torch's own gradients are not finite everywhere.
        finite = numbers.isfinite()
        if not torch.equal(finite, got[1][place].isfinite()):
            raise Violation(
                f"{what} computes another {place.split('[')[0]}", f"{place}: not finite elsewhere"
            )
        try:
            assert_close(got[1][place][finite], numbers[finite], tolerance, place)
        except AssertionError as error:
            raise Violation(f"{what} computes another {place.split('[')[0]}", str(error)) from None


def _has_gradients(program: Program) -> bool:
    """Whether the original runs where gradients are asked for: numpy, say, refuses what needs some."""
    space = program.build()
    try:
        run(space.model, space.x, gradients=True)
    except RuntimeError:
        return False
    return True


def computes_the_same(program: Program) -> str:
    """Judge ``decompose(model)`` and ``decompose(model, x)``, in that order."""
    outcome, gradients = HELD, _has_gradients(program)
    for flat in (False, True):
        what = "decompose(model, x)" if flat else "decompose(model)"
        oracle, space = program.build(), program.build()
        before = picture(space)
        try:
            with judged(what):
                rewritten = decompose(space.model, tuple(space.x) if flat else None)
            unchanged(space, before, what)
            for inputs in (space.x, space.x, space.background):
                expected = run(oracle.model, inputs, gradients=gradients)
                with judged(f"a call of {what}"):
                    got = run(rewritten, inputs, gradients=gradients)
                compare(expected, got, what)
        except RewriteError as error:
            unchanged(space, before, f"{what}, which is refused,")
            outcome = must_name(error, program, culprit=False)
    return outcome
