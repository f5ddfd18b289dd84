"""Compare a rewritten model with its original, number by number."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from passes.errors import InputError, RewriteError
from passes.user_code.clone import is_compiled
from passes.user_code.source import where_failed
from rewriter.equivalence.correspondence import Correspondence, correspondence
from rewriter.equivalence.differences import Findings, differs_from_itself, short_name
from rewriter.equivalence.first_layer import different_weights, first_layer
from rewriter.equivalence.probe import Conditions, Run, run, takes
from rewriter.equivalence.provenance import hash_of_weights, versions
from rewriter.equivalence.report import EquivalenceError, EquivalenceReport
from rewriter.equivalence.variation import NUMBERS, plan, redraw
from rewriter.inputs import Model, as_module
from rewriter.places import describe, walk

TOLERANCES: Mapping[torch.dtype, float] = MappingProxyType({torch.float32: 1e-5, torch.float64: 1e-10})

# Characters of a reason why something does not vary.
_SHORT = 120
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
    else as the rewritten model's report says, if one is a view of the other's memory, else by name.

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
            its range. Where both models take it, batch and length grow from seed to seed, and integers,
            such as lengths and token ids, are drawn anew; the report's notes say what varied, and what
            stayed because a model refuses it otherwise. 1 compares on the example alone.
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
    drawn: _Drawn | None = None
    # The inputs that ran, by dtype and seed.
    ran: dict[str, dict[int, Any]] = {}
    for dtype in tolerances:
        try:
            conditions, first = _first_run(pair.original, example_inputs, dtype)
        except Exception as error:
            not_compared[short_name(dtype)] = (
                f"the original does not run: {_said(error)}, {where_failed(error)}"
            )
            continue
        notes += _default_dtype_note(conditions)
        notes += _entropy_note(first, pair, example_inputs, conditions, tolerances[dtype])
        _compare(first, pair, example_inputs, conditions, findings)
        if drawn is None:
            drawn = _drawn(pair, example_inputs, conditions, seeds)
            notes += drawn.notes
        ran[short_name(dtype)] = {0: example_inputs}
        for seed, choices in enumerate(drawn.inputs, start=1):
            inputs, left_out = _compare_redrawn(pair, choices, replace(conditions, seed=seed), findings)
            notes += left_out
            if not left_out:
                ran[short_name(dtype)][seed] = inputs
    names = type(pair.original).__name__, type(pair.rewritten).__name__
    if drawn is None:
        reasons = "\n".join(f"  - {dtype}: {reason}" for dtype, reason in not_compared.items())
        raise RewriteError(
            f"example_inputs do not run through the original ({names[0]}):\n{reasons}\nPass them as the "
            "model is called: one positional argument, a tuple of them, or a mapping of keyword arguments."
        )
    different = min(
        1 + sum(_differ(example_inputs, each) for seed, each in runs.items() if seed) for runs in ran.values()
    )
    return EquivalenceReport(
        *names,
        different,
        tuple(short_name(dtype) for dtype in tolerances),
        findings.worst,
        not_compared,
        (*notes, *findings.notes),
        inputs=tuple(_described(each) for each in next(iter(ran.values())).values()),
        versions=versions(),
        weights={"original": hash_of_weights(pair.original), "rewritten": hash_of_weights(pair.rewritten)},
        **_told(pair, findings, tolerances, ran),
    )


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


class _Drawn(NamedTuple):
    """What is run besides the example.

    Args:
        inputs: for each seed, what is tried in turn: all that may vary, then numbers alone.
        notes: what varies, and what does not.

    """

    inputs: list[tuple[Any, ...]]
    notes: list[str]


def _drawn(pair: _Pair, example_inputs: Any, conditions: Conditions, seeds: int) -> _Drawn:
    if seeds == 1:
        return _Drawn([], [])

    def refuses(inputs: Any) -> str:
        error = takes(pair.original, inputs, conditions)
        if error is None:
            # What is written out for one length says so; anything else that it raises is a difference.
            error = takes(pair.rewritten, inputs, conditions)
            error = error if isinstance(error, InputError) else None
        return "" if error is None else _first_line(error)

    chosen = plan(example_inputs, refuses)
    inputs = [
        tuple(
            redraw(example_inputs, seed, each)
            for each in ([chosen, NUMBERS] if chosen != NUMBERS else [NUMBERS])
        )
        for seed in range(1, seeds)
    ]
    if not any(_differ(example_inputs, each[0]) for each in inputs):
        return _Drawn(inputs, ["one input: the other seeds only draw other random numbers inside"])
    stays = [f"{what} stays as in the example: {why}" for what, why in chosen.refused.items()]
    return _Drawn(inputs, [str(chosen), *stays])


def _differ(example_inputs: Any, inputs: Any) -> bool:
    """Tell whether any number was drawn anew."""
    pairs = zip(walk(example_inputs, "input"), walk(inputs, "input"), strict=False)
    tensors = [(a, b) for (_, a), (_, b) in pairs if isinstance(a, Tensor) and isinstance(b, Tensor)]
    return any(a.shape != b.shape or not torch.equal(a, b) for a, b in tensors if a is not b)


def _described(inputs: Any) -> str:
    tensors = [(place, each) for place, each in walk(inputs, "input") if isinstance(each, Tensor)]
    return "; ".join(f"{place}: {describe(each)}" for place, each in tensors)


def _told(
    pair: _Pair,
    findings: Findings,
    tolerances: Mapping[torch.dtype, float],
    ran: Mapping[str, Mapping[int, Any]],
) -> dict[str, Any]:
    """Say where to look first: by an output that differs, if one does, in the widest dtype."""
    failures = [each for each in findings.worst if not each.equal]
    if not failures:
        return {}
    told = {"other_weights": tuple(different_weights(pair.original, pair.rewritten, pair.parameters))}
    shows = [each for each in failures if each.kind == "output"] or failures
    worst = max(shows, key=lambda each: each.dtype)
    dtype = next(each for each in tolerances if short_name(each) == worst.dtype)
    same = [each for each in failures if each.dtype == worst.dtype]
    try:
        conditions, _ = _first_run(pair.original, ran[worst.dtype][0], dtype)
    except Exception:
        return told
    conditions = replace(conditions, seed=worst.seed)
    inputs = ran[worst.dtype][worst.seed]
    layer = first_layer(pair.original, pair.rewritten, inputs, conditions, same, tolerances[dtype])
    return {**told, "first_layer": layer}


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


def _compare_redrawn(
    pair: _Pair, choices: tuple[Any, ...], conditions: Conditions, findings: Findings
) -> tuple[Any, list[str]]:
    """Compare on other numbers than the example's; return them, or a note if the original refuses them."""
    refused = ""
    for inputs in choices:
        try:
            expected = run(pair.original, inputs, conditions)
        except Exception as error:
            refused = _said(error)
            continue
        _compare(expected, pair, inputs, conditions, findings)
        return inputs, []
    where = f"{short_name(conditions.dtype)}, seed {conditions.seed}"
    return None, [f"{where} was left out: the original does not take random floats: {refused}"]


def _compare(expected: Run, pair: _Pair, inputs: Any, conditions: Conditions, findings: Findings) -> None:
    try:
        got = run(pair.rewritten, inputs, conditions, expected.cotangents)
    except Exception as error:
        problem = f"the original runs, the rewritten model raises {_said(error)}, {where_failed(error)}"
        if conditions.seed:
            problem += "; seeds=1 compares on the example alone"
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


def _first_line(error: Exception) -> str:
    return textwrap.shorten(_said(error).splitlines()[0], _SHORT, placeholder=" ...")
