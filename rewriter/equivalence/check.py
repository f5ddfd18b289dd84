"""Compare a rewritten model with its original, number by number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from passes.user_code.clone import is_compiled
from rewriter.equivalence.correspondence import Correspondence, correspondence
from rewriter.equivalence.differences import Findings, differs_from_itself, short_name
from rewriter.equivalence.probe import Conditions, Run, redraw, run
from rewriter.equivalence.report import EquivalenceError, EquivalenceReport
from rewriter.inputs import Model, as_module
from rewriter.places import walk

TOLERANCES: Mapping[torch.dtype, float] = MappingProxyType({torch.float32: 1e-5, torch.float64: 1e-10})

# Modules whose modes a report tells one by one.
_MODES = 5


def check_equivalence(
    original: Model,
    rewritten: Model,
    example_inputs: Any,
    *,
    seeds: int = 3,
    tolerances: Mapping[torch.dtype, float] = TOLERANCES,
    gradient_factor: float = 10.0,
) -> EquivalenceReport:
    """Run two models on the same inputs and compare outputs, states and gradients.

    Copies of both are run, in the mode (training or evaluation) that each is in, and with the same
    random draws, so that dropout can be compared too. Every tensor of the output structure counts,
    wherever it is; so do types, lengths, keys, shapes, dtypes and devices, and the buffers of one name
    after the call. An output that cannot be looked into, such as a generator, is never equal. NaN at
    the same places of both is noted, unless nothing finite is left to compare. Gradients are those of
    all outputs at once, weighted at random, with respect to every floating input and every parameter;
    a gradient that does not exist counts as zero. Parameters correspond if they are the same tensor,
    else as the rewritten model's report says, else by name.

    Why these tolerances: two orders of summation of the same float64 numbers differ by a few units of
    1e-16 per operation, so that 1e-10 leaves room for hundreds of time steps and none for a wrong
    formula; float32 has nine digits fewer but its 1e-5 is nearer to its rounding, because float32 is
    what models run in and only has to show that nothing depends on the dtype. A gradient sums over
    all steps and samples, hence the factor ten. Differences are relative to max(1, max |original|):
    states of a recurrent layer are of size one, and elements that happen to be near zero must not
    be held to more digits than the tensor has.

    Args:
        original: any module.
        rewritten: what is claimed to compute the same.
        example_inputs: one positional argument, a tuple of them, or a mapping of keyword arguments.
        seeds: number of inputs to compare on. Seed 0 is the example, the others are random floats in
            its range; integers, such as lengths and token ids, stay as they are.
        tolerances: the dtypes to compare in, and the largest allowed difference in each.
        gradient_factor: how many times as large the difference of a gradient may be.

    Returns:
        A report. It claims equality only if the models could be compared in every dtype.

    Raises:
        RewriteError: for something that is no module, options out of range, or inputs that the
            original does not take in any of the dtypes.

    Example:
        >>> from rewriter import decompose
        >>> gru = nn.GRU(3, 2)
        >>> check_equivalence(gru, decompose(gru), torch.randn(5, 4, 3)).equal
        True

    """
    pair = _paired(original, rewritten)
    _check_options(seeds, tolerances, gradient_factor)
    findings = Findings(tolerances, gradient_factor)
    notes = _compiled_notes(original, rewritten) + _mode_notes(pair)
    not_compared: dict[str, str] = {}
    drawn = [redraw(example_inputs, seed) for seed in range(1, seeds)]
    changed = [_differ(example_inputs, inputs) for inputs in drawn]
    different_inputs = 1 + sum(changed)
    for dtype in tolerances:
        try:
            conditions, first = _first_run(pair.original, example_inputs, dtype)
        except Exception as error:
            not_compared[short_name(dtype)] = f"the original does not run: {_said(error)}"
            continue
        notes += _default_dtype_note(conditions)
        notes += _entropy_note(first, pair, example_inputs, conditions, tolerances[dtype])
        _compare(first, pair, example_inputs, conditions, findings)
        ran = 1
        for seed, inputs in enumerate(drawn, start=1):
            left_out = _compare_redrawn(pair, inputs, replace(conditions, seed=seed), findings)
            notes += left_out
            ran += changed[seed - 1] and not left_out
        different_inputs = min(different_inputs, ran)
    if drawn and not any(changed):
        notes.append("only integers: one input; the other seeds only draw other random numbers inside")
    names = type(pair.original).__name__, type(pair.rewritten).__name__
    if len(not_compared) == len(tolerances):
        reasons = "\n".join(f"  - {dtype}: {reason}" for dtype, reason in not_compared.items())
        raise RewriteError(f"example_inputs do not run through the original ({names[0]}):\n{reasons}")
    dtypes = tuple(short_name(dtype) for dtype in tolerances)
    notes += findings.notes
    return EquivalenceReport(*names, different_inputs, dtypes, findings.worst, not_compared, tuple(notes))


def assert_equivalent(
    original: Model,
    rewritten: Model,
    example_inputs: Any,
    *,
    seeds: int = 3,
    tolerances: Mapping[torch.dtype, float] = TOLERANCES,
    gradient_factor: float = 10.0,
) -> None:
    """Raise unless :func:`check_equivalence` finds the two models equal.

    Args:
        original: as for :func:`check_equivalence`, and so are the others.
        rewritten: what is claimed to compute the same.
        example_inputs: one positional argument, a tuple of them, or a mapping of keyword arguments.
        seeds: number of inputs to compare on.
        tolerances: the dtypes to compare in, and the largest allowed difference in each.
        gradient_factor: how many times as large the difference of a gradient may be.

    Raises:
        EquivalenceError: a RewriteError and an AssertionError, with the table as its message and the
            report as its ``report``; also if the models could not be compared in one of the dtypes.
        RewriteError: for input that cannot be compared at all.

    Example:
        >>> from rewriter import decompose
        >>> cell = nn.LSTMCell(3, 2)
        >>> assert_equivalent(cell, decompose(cell), torch.randn(4, 3))

    """
    report = check_equivalence(
        original,
        rewritten,
        example_inputs,
        seeds=seeds,
        tolerances=tolerances,
        gradient_factor=gradient_factor,
    )
    if not report.equal:
        raise EquivalenceError(report)


class _Pair(NamedTuple):
    original: nn.Module
    rewritten: nn.Module
    parameters: Correspondence


def _paired(original: object, rewritten: object) -> _Pair:
    first, second = _checked_module(original, "original"), _checked_module(rewritten, "rewritten")
    return _Pair(first, second, correspondence(first, second))


def _first_run(original: nn.Module, example_inputs: Any, dtype: torch.dtype) -> tuple[Conditions, Run]:
    """Find conditions under which the original takes the example.

    Many models create tensors of the default dtype. It is changed only for a model that fails
    otherwise, so that a rewritten model which depends on it does not pass for one that does not.
    """
    plain = Conditions(dtype, seed=0)
    try:
        return plain, run(original, example_inputs, plain)
    except Exception as error:
        changed = replace(plain, default_dtype=dtype)
        try:
            return changed, run(original, example_inputs, changed)
        except Exception:
            raise error from None


def _differ(example_inputs: Any, inputs: Any) -> bool:
    """Tell whether any number was drawn anew."""
    pairs = zip(walk(example_inputs, "input"), walk(inputs, "input"), strict=False)
    tensors = [(a, b) for (_, a), (_, b) in pairs if isinstance(a, Tensor) and isinstance(b, Tensor)]
    return any(a.is_floating_point() and not torch.equal(a, b) for a, b in tensors if a is not b)


def _entropy_note(
    first: Run, pair: _Pair, example_inputs: Any, conditions: Conditions, tolerance: float
) -> list[str]:
    said = "the original differs from itself when run twice from the same seed"
    try:
        again = run(pair.original, example_inputs, conditions, first.cotangents)
    except Exception as error:
        return [f"{said}: the second run raises {_said(error)}"]
    places = differs_from_itself(first, again, tolerance)
    return [f"{short_name(conditions.dtype)}: {said}, at {', '.join(places[:3])}"] if places else []


def _compare_redrawn(pair: _Pair, inputs: Any, conditions: Conditions, findings: Findings) -> list[str]:
    """Compare on other numbers than the example's; return a note if the original refuses them."""
    try:
        expected = run(pair.original, inputs, conditions)
    except Exception as error:
        where = f"{short_name(conditions.dtype)}, seed {conditions.seed}"
        return [f"{where} was left out: the original does not take random floats: {_said(error)}"]
    _compare(expected, pair, inputs, conditions, findings)
    return []


def _compare(expected: Run, pair: _Pair, inputs: Any, conditions: Conditions, findings: Findings) -> None:
    try:
        got = run(pair.rewritten, inputs, conditions, expected.cotangents)
    except Exception as error:
        problem = f"the original runs, the rewritten model raises {_said(error)}"
        findings.problem(conditions, "run", "rewritten", problem)
        return
    findings.outputs(conditions, expected, got)
    findings.buffers(conditions, expected, got)
    findings.input_gradients(conditions, expected, got)
    findings.parameter_gradients(conditions, expected, got, pair.parameters)


def _checked_module(model: object, which: str) -> nn.Module:
    module = as_module(model, which)
    # A copy of what is inside runs as it is, without compiling anew for each dtype.
    return module.get_submodule("_orig_mod") if is_compiled(module) else module


def _compiled_notes(original: Model, rewritten: Model) -> list[str]:
    models = {"the original": original, "the rewritten model": rewritten}
    return [
        f"{name} was compared without torch.compile"
        for name, model in models.items()
        if is_compiled(model) or getattr(model, "_compiled_call_impl", None) is not None
    ]


def _check_options(seeds: int, tolerances: Mapping[torch.dtype, float], gradient_factor: float) -> None:
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise RewriteError(f"seeds: expected a number of at least 1, got {seeds!r}")
    usable = isinstance(tolerances, Mapping) and all(
        isinstance(dtype, torch.dtype) and dtype.is_floating_point and 0 <= tolerance < math.inf
        for dtype, tolerance in tolerances.items()
    )
    if not usable or not tolerances:
        raise RewriteError(f"tolerances: expected {{floating dtype: tolerance}}, got {tolerances!r}")
    if not 1 <= gradient_factor < math.inf:
        raise RewriteError(f"gradient_factor: expected a number of at least 1, got {gradient_factor!r}")


def _mode_notes(pair: _Pair) -> list[str]:
    top = pair.original.training, pair.rewritten.training
    notes = []
    if top[0] != top[1]:
        notes.append(f"the original is in {_mode(top[0])} mode, the rewritten model in {_mode(top[1])} mode")
    there = dict(pair.rewritten.named_modules(remove_duplicate=False))
    for name, module in pair.original.named_modules(remove_duplicate=False):
        modes = module.training, there[name].training if name in there else module.training
        if name and modes[0] != modes[1] and modes != top:
            original, rewritten = (_mode(training) for training in modes)
            notes.append(
                f"{name} is in {original} mode in the original, in {rewritten} mode in the rewritten"
            )
    if len(notes) > _MODES:
        notes[_MODES:] = [f"{len(notes) - _MODES} more modules are in different modes"]
    return notes


def _mode(training: bool) -> str:
    return "training" if training else "evaluation"


def _default_dtype_note(conditions: Conditions) -> list[str]:
    if conditions.default_dtype is None:
        return []
    return [
        f"in {short_name(conditions.dtype)} both models ran with torch.set_default_dtype"
        f"({conditions.default_dtype}), because the original creates tensors of the default dtype"
    ]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip()
