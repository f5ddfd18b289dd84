"""Whether a rewritten model computes what the original computes: both are run, and compared."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passes.errors import InputError, RewriteError
from passes.graph.graph_module import Lowered
from passes.recurrent.lengths import as_arguments
from passes.user_code.hooks import modes_kept
from passes.user_code.randomness import random_state_kept
from passes.user_code.source import line_of, where_failed
from passes.user_code.surroundings import unnoticed
from passes.user_code.twin import OnCopies, Twin
from rewriter.compiler.culprit import Arguments, first_difference
from rewriter.compiler.report import Proven, Report
from rewriter.places import describe, differences, map_tensors, numbers, walk

#: Of the largest number of a tensor. What is off by more in the model's own dtype is judged in float64, where
# rounding, however much the model amplifies it, is far below the difference of two functions.
CLOSE = {torch.float32: 1e-5, torch.float64: 1e-10}
_COARSE = 1e-2
_JUDGED = 1e-8
# A number that is that much smaller than the largest of all is what others left when they cancelled.
_CANCELLED = 1e-4
_GRADIENT = "gradient of "
_SIZES = {"more rows and steps": (0, 1), "more rows": (0,), "more steps": (1,), "the same": ()}


class UnprovenError(RewriteError):
    """A rewritten model computes something else than the original."""


def prove(original: nn.Module, rewritten: nn.Module, example_inputs: Any) -> Proven:
    """Run copies of both: on the inputs, again, and with more rows and steps in the other mode.

    Args:
        original: the user's; it is not touched.
        rewritten: is not touched either.
        example_inputs: as :func:`rewriter.decompose` takes them.

    Raises:
        UnprovenError: naming the first place where they differ, and the first module that does.
        RewriteError: if the original does not take the inputs.

    Example:
        >>> gru = nn.GRU(3, 2)
        >>> prove(gru, gru, torch.zeros(4, 2, 3)).largest
        0.0

    """
    return _Trial(original, rewritten, as_arguments(example_inputs)).held()


def prove_call(
    original: nn.Module,
    rewritten: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    gradients: bool = True,
) -> Proven:
    """Compare copies of both for one call, in the mode that they are in.

    Args:
        original: the user's model.
        rewritten: made of it.
        args: positional arguments.
        kwargs: keyword arguments.
        gradients: compare those of the inputs, too.

    Returns:
        What was compared; a note where the original does not take the arguments.

    Raises:
        UnprovenError: naming the first place where they differ, and the first module that does.

    Example:
        >>> prove_call(nn.Tanh(), nn.Tanh(), (torch.zeros(4, 2),), {}).runs
        ['Tensor float32 (4, 2) on cpu']

    """
    return _Trial(original, rewritten, (args, dict(kwargs))).held_once(gradients=gradients)


def wrong(model: nn.Module, how: str, replaced: Sequence[str] = ()) -> UnprovenError:
    """Return the error for a model that computes something else when its layers are rewritten.

    Args:
        model: the original.
        how: where it differs.
        replaced: names of the types for which the user gave replacements.

    """
    what = f"the rewritten {type(model).__name__} computes something else than the original: {how}. "
    if replaced:
        return UnprovenError(
            f"{what}Does what replacements builds for {', '.join(replaced)} return the same as the module it "
            "is built for, given the same tensors?"
        )
    return UnprovenError(
        f"{what}Does its code go by the type or the name of a layer? A rewritten layer answers isinstance, "
        f"but has a class of its own: write isinstance(layer, nn.{_layer_of(model)}), not type(layer) is "
        f"nn.{_layer_of(model)}"
    )


def _layer_of(model: nn.Module) -> str:
    """Return the name of a layer that is rewritten, recurrent if there is one."""
    kinds = [type(each) for each in model.modules() if type(each) is getattr(nn, type(each).__name__, None)]
    recurrent = [each for each in kinds if issubclass(each, nn.RNNBase | nn.RNNCellBase)]
    return next((each.__name__ for each in (*recurrent, *kinds)), "Linear")


def runs(model: nn.Module, example_inputs: Any) -> bool:
    """Whether a copy of a model takes the inputs.

    Example:
        >>> runs(nn.Linear(2, 1), torch.zeros(3, 2)), runs(nn.Linear(2, 1), torch.zeros(3, 4))
        (True, False)

    """
    return _run(Twin(model).model, as_arguments(example_inputs)).error is None


@dataclass
class _Outcome:
    """What one run gave: numbers by place, and the structure that they were in; or the error."""

    output: Any = None
    found: Mapping[str, Tensor] | None = None
    error: Exception | None = None


class _Trial:
    def __init__(self, original: nn.Module, rewritten: nn.Module, example_inputs: Arguments) -> None:
        self.original, self.rewritten = original, rewritten
        self.inputs: Arguments = example_inputs
        self.runs: list[str] = []
        self.notes: list[str] = []
        self.largest = 0.0

    def held_once(self, *, gradients: bool) -> Proven:
        sides = [Twin(self.original).model, Twin(self.rewritten).model]
        expected, got = self._both(sides, gradients=gradients)
        args, kwargs = self.inputs
        shown = ", ".join(map(describe, (*args, *kwargs.values())))
        if expected.error is not None:
            how = f"{type(expected.error).__name__}: {expected.error}".splitlines()[0]
            self.notes.append(f"{shown}: not compared, the original raises {how}")
        # What we refuse, another length say, is not wrong.
        elif not isinstance(got.error, RewriteError):
            self._compare_random(expected, got, self.inputs, shown, self.original.training)
        return Proven(self.runs, self.largest, self.notes)

    def held(self) -> Proven:
        with modes_kept(self.rewritten):
            return self._held([Twin(self.original).model, _to_run(self.rewritten)])

    def _held(self, sides: list[nn.Module]) -> Proven:
        for what in ("the example inputs", "the same again"):
            expected, got = self._both(sides, gradients=not self.runs)
            if expected.error is not None:
                raise RewriteError(
                    "example_inputs do not run through the model: "
                    f"{type(expected.error).__name__}: {expected.error}, {where_failed(expected.error)}"
                ) from expected.error
            self._compare(expected, got, self.inputs, what)
        training = not self.original.training
        for side in sides:
            side.train(training)
        mode = "training" if training else "evaluation"
        for sizes, inputs in _resized(self.inputs):
            expected = _run(sides[0], inputs)
            if expected.error is not None:
                continue
            got = _run(sides[1], inputs)
            # What we refuse, another length say, is not wrong.
            if not isinstance(got.error, RewriteError):
                self._compare_random(expected, got, inputs, f"{sizes} in {mode} mode", training)
                break
        return Proven(self.runs, self.largest, self.notes)

    def _both(self, sides: list[nn.Module], *, gradients: bool) -> list[_Outcome]:
        """Run both; without gradients where the original runs only so, as code that calls numpy does."""
        got = _run(sides[1], self.inputs, gradients=gradients)
        if isinstance(got.error, InputError):
            # Torch's kernels do not check all of that, packed features for one, and write where they may not.
            return [got, got]
        found = [_run(sides[0], self.inputs, gradients=gradients), got]
        if gradients and found[0].error is not None:
            plain = [_run(side, self.inputs) for side in sides]
            return found if plain[0].error is not None else plain
        return found

    def _compare_random(
        self, expected: _Outcome, got: _Outcome, inputs: Arguments, what: str, training: bool
    ) -> None:
        try:
            self._compare(expected, got, inputs, what)
        except UnprovenError:
            if not (training and self._draws(inputs)):
                raise
            self.notes.append(f"{what}: not compared, the model draws random numbers in another order")

    def _draws(self, inputs: Arguments) -> bool:
        """Whether the original in training differs from itself, from another state of the generators."""
        first, second = Twin(self.original).model.train(), Twin(self.original).model.train()
        expected = _run(first, inputs)
        with random_state_kept():
            torch.rand(1)
            other = _run(second, inputs)
        return expected.found is not None and _worst(expected.found, other.found or {})[0] > _COARSE

    def _compare(self, expected: _Outcome, got: _Outcome, inputs: Any, what: str) -> None:
        if got.error is not None:
            where = line_of(got.error)
            raise UnprovenError(
                f"on {what} it raises {type(got.error).__name__}: {got.error}{f' ({where})' if where else ''}"
            ) from got.error
        for place, how in differences(expected.output, got.output, "output"):
            # What cannot be looked into is in neither.
            if not how.startswith("cannot look into"):
                first = first_difference(self.original, self.rewritten, inputs)
                raise UnprovenError(f"on {what}, {place}: {how}{first}")
        assert expected.found is not None
        assert got.found is not None
        worst, place = _worst(expected.found, got.found)
        if worst > _tolerance(expected.found, place):
            worst = self._judged(inputs, what, worst, place)
        self.runs.append(what)
        self.largest = max(self.largest, worst)

    def _judged(self, inputs: Any, what: str, worst: float, place: str) -> float:
        """Compare once more in float64, in which the two are one function or two."""
        wide = map_tensors(
            inputs, "input", lambda _, x: x.detach().double() if x.is_floating_point() else x.detach().clone()
        )
        gradients = place.startswith(_GRADIENT)
        with default_dtype(torch.float64):
            expected, got = (
                _run(Twin(side).model.double(), wide, gradients=gradients)
                for side in (self.original, self.rewritten)
            )
        comparable = expected.error is None and got.error is None and expected.found and got.found
        if comparable and all(x.dtype != torch.float32 for x in expected.found.values()):  # type: ignore[union-attr]
            assert expected.found is not None
            assert got.found is not None
            judged, at = _worst(expected.found, got.found, floor=_CANCELLED)
            if judged <= _JUDGED:
                return judged
            worst, place = max((judged, at), (worst, place))
        elif worst <= _COARSE:
            # The model is bound to its dtype: then its rounding is all there is to go by.
            return worst
        where = first_difference(self.original, self.rewritten, inputs)
        raise UnprovenError(f"on {what}, {place} differs by {worst:.2g} of the largest number in it{where}")


def _to_run(rewritten: nn.Module) -> nn.Module:
    """Return what computes as a model does, and writes to nothing of it; nobody else runs it yet."""
    ours = isinstance(rewritten, Lowered) and not Report.of(rewritten).islands
    return OnCopies(rewritten) if ours and OnCopies.runs(rewritten) else Twin(rewritten).model


def _run(model: nn.Module, inputs: Arguments, *, gradients: bool = False) -> _Outcome:
    """Run a copy on copies of the inputs, from the present state of the random generators."""
    leaves: dict[str, Tensor] = {}

    def prepare(place: str, tensor: Tensor) -> Tensor:
        copy = tensor.detach().clone()
        # What holds infinities is a mask.
        if not (gradients and tensor.is_floating_point() and bool(copy.isfinite().all())):
            return copy
        leaves[place] = copy.requires_grad_()
        # A model may write into its input, which torch forbids for a leaf.
        return leaves[place].clone()

    try:
        with unnoticed(model), torch.inference_mode(False), torch.set_grad_enabled(gradients):
            args, kwargs = (map_tensors(each, "input", prepare) for each in inputs)
            output = model(*args, **kwargs)
            found = dict(numbers(output, "output"))
            with contextlib.suppress(RuntimeError):
                # Of code whose gradient torch refuses to compute there is none to compare.
                found |= {f"{_GRADIENT}{place}": each for place, each in _gradients(found, leaves)}
    except Exception as error:
        return _Outcome(error=error)
    return _Outcome(output, {place: each.detach() for place, each in found.items()})


def _gradients(outputs: Mapping[str, Tensor], leaves: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    moving = {place: each for place, each in outputs.items() if each.requires_grad}
    if not (moving and leaves):
        return
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each) for each in moving.values()
    ]
    found = torch.autograd.grad(list(moving.values()), list(leaves.values()), weights, allow_unused=True)
    for (place, leaf), gradient in zip(leaves.items(), found, strict=True):
        yield place, torch.zeros_like(leaf) if gradient is None else gradient


def _worst(
    expected: Mapping[str, Tensor], got: Mapping[str, Tensor], floor: float = 0.0
) -> tuple[float, str]:
    """Return the largest difference relative to the largest number of its tensor, and its place."""
    largest = max((_size(each) for each in expected.values()), default=0.0)
    found = [(0.0, "output")]
    for place, a in expected.items():
        b = got.get(place)
        if b is None or b.shape != a.shape:
            found.append((float("inf"), place))
            continue
        found.append((_relative(a, b, max(_size(a), floor * largest)), place))
    return max(found)


def _relative(a: Tensor, b: Tensor, scale: float) -> float:
    if torch.equal(a, b):
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return float("inf")
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()):
        return float("inf")
    same = (a == b) | (a.isnan() & b.isnan())
    if not bool((same | finite).all()):
        return float("inf")
    gap = float((a - b)[finite].abs().max()) if bool(finite.any()) else 0.0
    return gap / scale if scale else (float("inf") if gap else 0.0)


def _size(tensor: Tensor) -> float:
    finite = tensor[tensor.isfinite()] if tensor.is_floating_point() or tensor.is_complex() else tensor
    return float(finite.abs().max()) if finite.numel() and finite.dtype != torch.bool else 0.0


def _tolerance(found: Mapping[str, Tensor], place: str) -> float:
    dtype = found[place].dtype if place in found else torch.float32
    gradient = 10.0 if place.startswith(_GRADIENT) else 1.0
    return CLOSE.get(dtype, 1e-5) * gradient


def _resized(arguments: Arguments) -> Iterator[tuple[str, Arguments]]:
    """Yield inputs with one more along the first two dimensions, along one of them, and as they are."""
    for name, dims in _SIZES.items():
        sizes = [
            {x.shape[dim] for _, x in walk(arguments, "") if isinstance(x, Tensor) and x.dim() > dim}
            for dim in dims
        ]
        if all(len(each) == 1 and min(each) > 0 for each in sizes):
            yield name, map_tensors(arguments, "", lambda _, x, dims=dims: _longer(x, dims))  # type: ignore[misc]


def _longer(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    longer = tensor.detach()
    for dim in itertools.takewhile(lambda dim: dim < tensor.dim(), dims):
        longer = torch.cat([longer, longer.narrow(dim, 0, 1)], dim)
    return longer


@contextmanager
def default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Let torch make tensors of another dtype, for a time; None for the one that it makes.

    Example:
        >>> with default_dtype(torch.float64):
        ...     torch.zeros(1).dtype
        torch.float64

    """
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype or before)
        yield
    finally:
        torch.set_default_dtype(before)
