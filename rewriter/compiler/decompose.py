"""The front door: decompose a model, write its steps out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from passes.errors import Decline, DeclinedError, FixedSizeError, ReplacementError, RewriteError
from passes.frontends.example_sizes import Example
from passes.frontends.tracing import trace_where_possible
from passes.graph.cleanup import Cleanup
from passes.graph.graph_module import Lowered
from passes.graph.unshare import UnshareAtoms
from passes.lowering.calls_in_graphs import LowerCalls
from passes.lowering.mark_embeddings import MarkEmbeddings
from passes.lowering.modules import ModuleReplacement
from passes.lowering.out_of_place import OutOfPlace
from passes.lowering.users_replacements import Replacements, checked, replace_users
from passes.operations.table import MODULES
from passes.pipeline import Pipeline
from passes.recurrent.kernels import fused_nodes
from passes.recurrent.lengths import as_arguments, copied
from passes.recurrent.recurrence import Recurrence
from passes.recurrent.replacements import recurrent_replacements
from passes.replacement import ApplyReplacements
from passes.user_code.clone import clone_structure, named_clones
from passes.user_code.source import line_of
from rewriter.compiler.culprit import with_sources
from rewriter.compiler.first_calls import FirstCalls
from rewriter.compiler.flat import unrolled
from rewriter.compiler.layer_reports import (
    call_operation,
    keras_layers,
    layer_reports,
    module_operation,
    parameter_names,
)
from rewriter.compiler.proof import UnprovenError, runs, wrong
from rewriter.compiler.proof import prove as prove_equal
from rewriter.compiler.report import Report, UncoveredReport
from rewriter.compiler.uncovered import uncovered_calls, uncovered_nodes
from rewriter.inputs import Model, as_module
from rewriter.keras.replacements import keras_builds, keras_declines

_LOCK = threading.RLock()


def decompose(
    model: Model,
    example_inputs: Any = None,
    *,
    gates: Literal["fused", "split"] = "fused",
    scope: Literal["model", "recurrent"] = "model",
    strict: bool = True,
    prove: bool = True,
    replacements: Replacements | None = None,
) -> nn.Module:
    """Rewrite a model into linear operations and atoms, each of which has an exact attribution rule.

    Every recurrent layer becomes Linear, sigmoid, tanh, mul and add. Activations, products of two varying
    operands, softmax, norms and maxima become atoms, too, whether they are modules, functions or methods.

    The result computes what ``model`` computes, shares its parameters and buffers, and carries a
    ``report`` (see :class:`rewriter.Report`). It is a ``torch.fx.GraphModule`` where torch.fx can
    follow the model, else a model of the same class with rewritten layers in it. The original stays
    as it is. Because parameters are shared, whatever moves, converts or trains the result does it to the
    original's parameters too: take ``copy.deepcopy`` of the result for a model of its own. A GraphModule
    has the original's forward, but not its other methods, and takes settings that only ``__init__``
    assigns as they are now.

    Args:
        model: any module; a recurrent layer itself, too; or a program of ``torch.export``, whose recurrent
            layers are written out for the length that it was exported for.
        example_inputs: one positional argument, a tuple of them, or a mapping of keyword arguments.
            With them every time step is written out, for the lengths that they have; without them
            the result takes sequences of any length.
        gates: ``"fused"`` keeps torch's weights; ``"split"`` makes one Linear per gate (``fc_ii``,
            ``fc_hi``, …) with copies of them.
        scope: ``"model"``, or ``"recurrent"`` to leave everything but the recurrent layers as it is.
        strict: raise if a recurrent module cannot be rewritten exactly; otherwise keep it and report.
        prove: run the result on the example inputs beside the original and compare outputs and gradients,
            twice, then with more rows and in the other mode; what differs stays the user's code. False
            saves three runs of the model.
        replacements: what modules of exactly these types become: functions that take the module (a copy
            that shares its parameters) and return a module that computes the same from tensors, by code
            that torch.fx can follow or layers that have a rewrite. They come before all rewrites of ours,
            which serve what is built as they serve the model. The proof holds them to the original.

    Returns:
        The rewritten model.

    Raises:
        RewriteError: for something that is not a model, example inputs that do not run, or a replacement
            that builds no module.
        DeclinedError: with ``strict``, listing every module that cannot be rewritten and why.
        UnprovenError: if the result computes something else than the model, also with the model's own code
            around the rewritten layers.

    Example:
        >>> import torch
        >>> lstm = torch.nn.LSTM(3, 2, batch_first=True)
        >>> rewritten = decompose(lstm)
        >>> x = torch.randn(4, 5, 3)
        >>> bool(torch.allclose(rewritten(x)[0], lstm(x)[0], atol=1e-6))
        True

    """
    if gates not in ("fused", "split"):
        raise RewriteError(f"gates: expected 'fused' or 'split', got {gates!r}")
    if scope not in ("model", "recurrent"):
        raise RewriteError(f"scope: expected 'model' or 'recurrent', got {scope!r}")
    model = as_module(model)
    builds = checked(replacements)
    replaced = [kind.__name__ for kind in builds]
    how = partial(_lower, split=gates == "split", whole=scope == "model", builds=builds)
    lower = partial(how, model, strict=strict)
    with _LOCK, torch.inference_mode(False):
        if example_inputs is None:
            rolled = lower()
            if rolled is not model:
                _prove_when_called(model, rolled, partial(how, strict=False), replaced, prove=prove)
            return rolled
        flat = partial(_flat, model, lower, example_inputs)
        if not prove:
            return _unproven(flat(None), _SWITCHED_OFF)
        return _proven(model, flat, example_inputs, replaced)


def unroll(model: nn.Module, example_inputs: Any = None, *, length: int | None = None) -> nn.Module:
    """Write every time step of a decomposed model out, for one length.

    Args:
        model: what :func:`decompose` returned, or any other model, which is then decomposed first.
        example_inputs: as for :func:`decompose`; the lengths are those that occur in them.
        length: instead of example inputs: the number of steps of every recurrent layer.

    Returns:
        A new model whose graph holds one node for each activation and product of each step, compared with
        the original as :func:`decompose` does.

    Raises:
        UnprovenError: as :func:`decompose`.
        RewriteError: unless exactly one of ``example_inputs`` and ``length`` is given, or if the model
            is unrolled for another length already.

    Example:
        >>> import torch
        >>> flat = unroll(torch.nn.GRU(3, 2), length=2)
        >>> [node.name for node in flat.graph.nodes if "update_gate_mul" in node.name]
        ['layer0_forward_steps_t0_update_gate_mul', 'layer0_forward_steps_t1_update_gate_mul']

    """
    if (example_inputs is None) == (length is None):
        raise RewriteError("unroll: expected either example_inputs or length, got both or neither")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
        raise RewriteError(f"unroll: expected a length of at least 1, got {length!r}")
    with _advising(
        "Mend them, or unroll(decompose(model, strict=False), ...), which keeps them as they are."
    ):
        rolled = decompose(model) if _report_of(model) is None else model
    before = FirstCalls.of(rolled)
    with _LOCK, torch.inference_mode(False):
        flat = partial(_flat_of, rolled, before, example_inputs, length)
        if before is None:
            return _unproven(flat(None), *(Report.of(rolled).proven.notes or [_NO_ORIGINAL]))
        try:
            original = before.original_of(rolled)
        except RewriteError as error:
            return _unproven(flat(None), str(error))
        if length is None:
            return _proven(original, flat, example_inputs, before.replaced)
        again = partial(_again, before.lower, length)
        return _prove_when_called(original, flat(None), again, before.replaced)


def _flat_of(
    rolled: nn.Module, before: FirstCalls | None, example_inputs: Any, length: int | None, code: str | None
) -> nn.Module:
    own = clone_structure(rolled)
    if before is not None and (code is not None or (example_inputs is not None and Report.of(own).islands)):
        # Of the user's own code again, of which more can be written out for these inputs.
        example = None if example_inputs is None else Example(*as_arguments(example_inputs))
        own = before.lower(before.original_of(rolled), code=code, example=example)
    return unrolled(own, example_inputs, length)


def _again(lower: Callable[..., nn.Module], length: int, model: nn.Module, code: str) -> nn.Module:
    return unrolled(lower(model, code=code), None, length)


_SWITCHED_OFF = "not compared: prove=False"
_NO_ORIGINAL = "not compared: the model that it was made of is not known any more"


def _unproven(rewritten: nn.Module, *notes: str) -> nn.Module:
    for each in notes:
        Report.of(rewritten).proven.note(each)
    return rewritten


def _prove_when_called(
    model: nn.Module,
    rewritten: nn.Module,
    lower: Callable[..., nn.Module],
    replaced: Sequence[str],
    *,
    prove: bool = True,
) -> nn.Module:
    if not prove:
        return _unproven(rewritten, _SWITCHED_OFF)
    before = FirstCalls(model, rewritten, lower, replaced)
    if isinstance(rewritten, Lowered):
        rewritten.before_call(before)
    else:
        rewritten.register_forward_pre_hook(before, with_kwargs=True)
    return rewritten


def _flat(
    model: nn.Module, lower: Callable[..., nn.Module], example_inputs: Any, code: str | None
) -> nn.Module:
    rolled = lower(code=code, example=Example(*as_arguments(example_inputs)))
    # A model that is decomposed already is lowered to itself.
    own = rolled if rolled is not model else clone_structure(rolled)
    return _reported(unrolled(own, example_inputs, None), example_inputs)


def _proven(
    model: nn.Module, flat: Callable[[str | None], nn.Module], example_inputs: Any, replaced: Sequence[str]
) -> nn.Module:
    """Return a graph that computes what the model does, else the model's code with rewritten layers."""
    code = None
    while True:
        result = None
        try:
            result = flat(code)
            proven = prove_equal(model, result, example_inputs)
        except ReplacementError:
            raise
        except RewriteError as error:
            if not (
                isinstance(error, UnprovenError | FixedSizeError)
                or (error.__cause__ and runs(model, example_inputs))
            ):
                raise
            if code is not None or (result is not None and not isinstance(result, fx.GraphModule)):
                raise wrong(model, str(error), replaced) from error
            code = f"a graph of it computes something else: {error}"
        else:
            Report.of(result).proven.add(proven)
            return result


def lowered(model: nn.Module, code: str | None = None, example: Sequence[Tensor] | None = None) -> nn.Module:
    """Decompose a model without a proof; as its own code with rewritten layers, if there is a reason to.

    Args:
        model: any.
        code: the reason.
        example: what it takes; loops that go by its sizes are written out for those.

    Example:
        >>> lowered(nn.Sequential(nn.GRU(3, 2)), "a reason").report.islands
        {'': 'a reason'}

    """
    advice = (
        "Mend them, then explain: what has no exact rewrite is not explained. rewriter.diagnose(model, x, "
        "background) measures what stock shap loses there."
    )
    with _LOCK, torch.inference_mode(False), _advising(advice):
        given = None if example is None else Example(example)
        return _lower(model, split=False, whole=True, strict=True, code=code, example=given)


def _reported(flat: nn.Module, example_inputs: Any) -> nn.Module:
    """Report also what no rule covers in code that is not in the graph, which a run can tell."""
    report = Report.of(flat)
    if report.islands:
        args, kwargs = as_arguments(copied(example_inputs))
        found = _uncovered(flat, report.islands, args, kwargs)
        known = [each for each in report.uncovered if each not in found]
        replace(report, uncovered=(*known, *found), code_was_run=True).attach(flat)
    return flat


def _uncovered(
    flat: nn.Module, islands: Mapping[str, str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[UncoveredReport]:
    try:
        return uncovered_calls(flat, islands, args, kwargs)
    except RewriteError:
        raise
    except Exception as error:
        # Torch refuses what the model's code does, once gradients are asked for.
        reason = f"runs without gradients alone: {type(error).__name__}: {error}".splitlines()[0]
        return [UncoveredReport("", "the model's code", line_of(error), reason)]


def _lower(
    model: nn.Module,
    *,
    split: bool,
    whole: bool,
    strict: bool,
    builds: Replacements | None = None,
    code: str | None = None,
    example: Example | None = None,
) -> nn.Module:
    clone, modules = named_clones(model)
    own = builds or {}
    of_states = keras_declines(modules)
    of_keras: Replacements = {}
    if not of_states:
        of_keras, modules = keras_builds(modules, own, models=code is None)
    users = replace_users({**of_keras, **own}, modules, clone)
    modules = users.modules
    recurrent = ApplyReplacements(recurrent_replacements(split=split), modules)
    recurrent(clone)
    before = _report_of(model)
    if before is not None and not (recurrent.rewrites or users.rewrites):
        _check_again(before, split=split, strict=strict)
        return model
    of_layers = keras_layers(clone)
    # Before the trace, so that a model that is refused is not traced for nothing.
    declines = with_sources(model, (*users.declines, *recurrent.declines))
    declines = (*of_states, *declines)
    _raise_declines(declines, strict=strict)
    exact = ApplyReplacements([ModuleReplacement(MODULES)] if whole else [], modules)
    exact(clone)
    # What a recurrence returns is taken apart by item, and is no layer's output.
    layers = [name for name, each in modules.items() if name and not isinstance(each, Recurrence)]
    traced = trace_where_possible(clone, code, layers, example)
    declines = (*declines, *_declined_nodes(traced.model))
    _raise_declines(declines, strict=strict)
    calls = LowerCalls()
    passes = (OutOfPlace(), *([calls] if whole else []), MarkEmbeddings(), UnshareAtoms(), Cleanup())
    rolled = Pipeline(*passes)(traced.model).model
    reports = layer_reports(rolled, users, recurrent.rewrites, of_layers, traced, split=split)
    operations = (*map(module_operation, exact.rewrites), *map(call_operation, calls.lowered))
    uncovered = tuple(uncovered_nodes(rolled, traced.islands))
    names = parameter_names(users, recurrent.rewrites)
    Report(reports, declines, traced.islands, names, operations, uncovered).attach(rolled)
    return rolled


def _raise_declines(declines: Sequence[Decline], *, strict: bool) -> None:
    if declines and strict:
        raise DeclinedError(tuple(declines))


@contextmanager
def _advising(advice: str) -> Iterator[None]:
    """Give what is declined below advice that can be followed where it is read."""
    try:
        yield
    except DeclinedError as error:
        raise DeclinedError(error.declines, advice) from None


def _check_again(before: Report, *, split: bool, strict: bool) -> None:
    """Refuse to hand a model back as if it were what is asked for now."""
    _raise_declines(list(before.declines), strict=strict)
    if split and any(layer.parameters == "shared" for layer in before.layers):
        raise RewriteError(
            "gates='split': the model is decomposed already, with fused gates; decompose the original instead"
        )


def _declined_nodes(model: nn.Module) -> list[Decline]:
    if not isinstance(model, fx.GraphModule):
        return []
    return [
        Decline(
            "",
            type(model).__name__,
            f"its code calls torch's {kernel}; use torch.nn's layer, or the exported program itself, instead",
        )
        for kernel in fused_nodes(model.graph)
    ]


def _report_of(model: object) -> Report | None:
    try:
        return Report.of(model) if isinstance(model, nn.Module) else None
    except RewriteError:
        return None
