"""Export to ONNX without recurrent operators, checked before anything is written."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from passes.errors import DeclinedError, RewriteError
from passes.recurrent.cell_layers import CellStandIn
from passes.user_code.hooks import modes_kept
from passes.user_code.randomness import random_state_kept
from rewriter.compiler.report import printable, render_table
from rewriter.inputs import Model, as_module
from rewriter.keras.replacements import keras_declines
from rewriter.onnx.arguments import (
    check_arguments,
    check_certificate,
    check_installed,
    checked_path,
    given_axes,
    write_files,
)
from rewriter.onnx.certificate.certify import certify, probe_of
from rewriter.onnx.certificate.contents import certificate_path
from rewriter.onnx.check import check_model, check_operators, check_reference, compare, opened, run_torch
from rewriter.onnx.example import Example, check_names, different, infer_batch_axes, read_example
from rewriter.onnx.export import evaluation_clone, has_users_loops, rewritten_clone, to_onnx
from rewriter.onnx.graph import (
    count_operators,
    drop_shapes,
    name_axes,
    name_interface,
    opset_of,
    shape_of,
    tidy,
)
from rewriter.onnx.portable.opset import lowered
from rewriter.onnx.runtime.session import SessionError
from rewriter.onnx.sizes.assumptions import Assumptions, lines_that_fix
from rewriter.onnx.sizes.axes import FreeAxes, at_two, free_axes, settled, sizes_of, with_times
from rewriter.onnx.sizes.parting import branch_on_a_size, parting_line
from rewriter.onnx.sizes.tried import Sizes, Trial, line_broken, trials
from rewriter.onnx.torch_export import quiet

# What runtimes without recurrent operators have: no loops, no branches, no sequences, nothing random.
ONNX_OPERATORS = frozenset({
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh",
    "AveragePool", "BatchNormalization", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Concat", "Constant",
    "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "Cosh", "CumSum", "DepthToSpace", "Div", "Elu",
    "Einsum", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND",
    "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GroupNormalization",
    "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "IsInf", "IsNaN", "LayerNormalization",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "MatMul", "Max", "MaxPool", "Mean", "Min",
    "Mish", "Mod", "Mul", "Neg", "Not", "OneHot", "Or", "PRelu", "Pad", "Pow", "Range", "Reciprocal",
    "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize", "Round", "ScatterElements", "ScatterND",
    "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice", "Softmax", "Softplus", "Softsign",
    "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Tile",
    "TopK", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
})  # fmt: skip
# Above, relative errors have other reasons.
_ROUNDING = 1e-3
# Operators in a row of a printed report.
_PER_ROW = 6


Shapes: TypeAlias = Mapping[str, tuple[int | str, ...]]


@dataclass(frozen=True)
class WrittenFile:
    """What is true of every ONNX file that this package writes.

    Args:
        path: the file.
        size: its size in bytes.
        opset: version of the ONNX operator set.
        operators: how often each operator occurs, in loop bodies and functions too.
        inputs: name and shape of each input, with names for the axes that can have any size.
        outputs: the same for each output.

    """

    path: str
    size: int
    opset: int
    operators: Mapping[str, int]
    inputs: Shapes
    outputs: Shapes

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, ready for ``json.dumps``."""
        return asdict(self)

    def _rows(self) -> list[tuple[str, str]]:
        """Return the file, its inputs and its outputs as rows of a table."""
        rows = [("file", f"{self.path}, {self.size:,} bytes, opset {self.opset}")]
        for what, values in (("input", self.inputs), ("output", self.outputs)):
            rows += [(what, f"{name} ({', '.join(map(str, shape))})") for name, shape in values.items()]
        return rows


def facts_of(
    path: str | os.PathLike[str], content: bytes, proto: Any
) -> tuple[str, int, int, Mapping[str, int], Shapes, Shapes]:
    """Return what a :class:`WrittenFile` says, in its order."""
    inputs, outputs = (
        {each.name: shape_of(each) for each in values} for values in (proto.graph.input, proto.graph.output)
    )
    return os.fspath(path), len(content), opset_of(proto), count_operators(proto), inputs, outputs


@dataclass(frozen=True)
class OnnxReport(WrittenFile):
    """What :func:`rewriter.export_onnx` wrote, and how it was checked; ``print`` shows it as a table.

    Args:
        path: the file.
        size: its size in bytes.
        opset: version of the ONNX operator set.
        operators: how often each operator occurs, in loop bodies and functions too.
        inputs: name and shape of each input, with names for the axes that can have any size.
        outputs: the same for each output.
        errors: for each choice of sizes that was compared, the worst difference of onnxruntime to torch,
            relative to max(1, max |torch|).
        bounds: the smallest and the largest size that the model takes along each free axis, None for any.

    Example:
        >>> report = OnnxReport("a.onnx", 1024, 18, {"Gemm": 1}, {"x": ("batch", 3)}, {}, {"batch of 1": 0.0})
        >>> report.to_dict()["operators"]
        {'Gemm': 1}

    """

    errors: Mapping[str, float]
    bounds: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = self._rows()
        counts = [f"{count} {op}" for op, count in self.operators.items()]
        for k in range(0, len(counts), _PER_ROW):
            rows += [("" if k else "operators", ", ".join(counts[k : k + _PER_ROW]))]
        for name, (least, most) in self.bounds.items():
            if least > 1 or most is not None:
                rows += [(name, f"at least {least}" if most is None else f"{least} to {most}")]
        rows += [(what, f"relative error {error:.1e}") for what, error in self.errors.items()]
        return printable(render_table(("onnx", ""), rows))


def export_onnx(
    model: Model,
    example_inputs: Any,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    batch_axes: Mapping[str, int] | None = None,
    dynamic_axes: Mapping[str, Mapping[int, Any]] | None = None,
    loops: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    operators: Collection[str] = ONNX_OPERATORS,
    tolerance: float = 1e-6,
    certificate: bool = True,
) -> OnnxReport:
    """Write a model as ONNX in which no recurrent operator is left, for any batch size.

    The model is exported in evaluation mode and stays as it is. Nothing is written unless the file
    passes ``onnx.checker``, holds no operator but the allowed ones, and gives in onnxruntime what the
    model gives in torch, for three batch sizes.

    Args:
        model: any module; one that is decomposed already gives the same file, but if its steps are
            written out, torch takes about half a second for each of them.
        example_inputs: one positional argument, a tuple of them, or a mapping of keyword arguments. The
            file takes sequences of the lengths that they have.
        path: the file to write; it is replaced in one step.
        opset: version of the ONNX operator set, 13 to 24; by default the lowest that has the operators.
        batch_axes: which axis of which input is the batch, by input name. By default this is found out
            by running the model on every row twice.
        dynamic_axes: what else may have any size, and what the file calls it, by input name and axis:
            ``{"x": {1: "time"}}``; ``torch.export.Dim("time", min=2, max=20)`` for a name has bounds. Axes
            of one name have one size. With ``loops`` those that recurrent layers run over are found.
        loops: make a Scan of each recurrent layer, so that the file takes sequences of any length, and of
            each loop over a cell of your own that is recognised, for as many steps as the code takes.
        input_names: names of the inputs; by default those of ``forward``'s parameters.
        output_names: names of the outputs; by default ``output``, or ``output_0``, ``output_1``, ….
        operators: the ONNX operators that the file may hold; LSTM, GRU and RNN are refused in any case,
            Scan is allowed with ``loops``.
        tolerance: largest difference between onnxruntime and torch, relative to max(1, max |torch|).
        certificate: write what was checked beside the file, as ``<path>.json``, for :func:`rewriter.verify`.

    Returns:
        The report.

    Raises:
        RewriteError: if onnx is not installed, or the model cannot be exported as promised.
        DeclinedError: if a recurrent layer cannot be rewritten exactly.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export_onnx(nn.GRU(3, 2), torch.randn(4, 5, 3), f"{folder}/gru.onnx")
        >>> report.inputs, report.outputs["output_1"], report.operators["Tanh"]
        ({'input': (4, 'batch', 3)}, (1, 'batch', 2), 4)

    """
    file = checked_path(path)
    model = as_module(model)
    declines = keras_declines({"": model})
    if declines:
        raise DeclinedError(tuple(declines))
    if certificate:
        check_certificate(file)
    check_arguments(model, opset, tolerance)
    if isinstance(operators, str) or not isinstance(operators, Collection):
        raise RewriteError(f"operators: expected names of ONNX operators in a set or list, got {operators!r}")
    check_installed()
    # Scripted submodules cannot be cloned: they are shared, and evaluation mode would stay.
    with modes_kept(model), torch.no_grad(), random_state_kept():
        source = _on_cpu(model)
        rewritten = rewritten_clone(source, rolled=loops)
        reference = evaluation_clone(source)
        example = read_example(source, example_inputs)
        given_names = check_reference(reference, example)
        example = example.with_names(example.names if input_names is None else input_names)
        batch = (
            infer_batch_axes(partial(run_torch, reference), example, partial(parting_line, reference))
            if batch_axes is None
            else given_axes(example, batch_axes)
        )
        free = free_axes(example, batch, {} if dynamic_axes is None else dynamic_axes)
        example = at_two(example, free)
        if loops:
            free = with_times(free, evaluation_clone(rewritten), reference, example)
            example = at_two(example, free)
        users = has_users_loops(rewritten)
        timed = loops and not users
        convert = partial(to_onnx, model=source, example=example, free=free, opset=opset, loops=loops)
        try:
            proto, assumptions = convert(rewritten)
        except RewriteError:
            if not users:
                raise
            # A step may hold what has no form in a Scan; written out it may have one.
            proto, assumptions = convert(rewritten_clone(source))
        fixed_line = next(filter(None, lines_that_fix(assumptions, free)), "")
        free = settled(free, example, assumptions)
        rows = {axes[axis].name for axes, axis in zip(free, batch, strict=True) if axis is not None}
        if timed and not any(axis.name not in rows for axes in free for axis in axes.values()):
            why = _why_frozen(rewritten, reference, example, free, fixed_line)
            raise RewriteError(f"export_onnx: loops=True, but the length of the sequences is frozen: {why}")
        _name(proto.graph, example, free, assumptions, output_names, given_names)
        with quiet():
            proto = lowered(tidy(proto), opset)
        drop_shapes(proto.graph)
        check_operators(proto, {*operators, "Scan"} if loops else operators)
        check_model(proto)
        content: bytes = proto.SerializeToString()
        sizes, errors, probes = _compare(content, reference, example, free, rows, assumptions, tolerance)
    bounds = {name: (sizes.least[name], sizes.most[name]) for name in sizes.own}
    bounded = {name: each for name, each in bounds.items() if each != (1, None)}
    if bounded:
        # ONNX has no place for them in a shape.
        entry = proto.metadata_props.add()
        entry.key, entry.value = "rewriter.bounds", json.dumps(bounded)
        content = proto.SerializeToString()
    files = {file: content}
    if certificate:
        stated = certify(proto, content, errors, bounds, probes, tolerance, source)
        files[certificate_path(file)] = stated
    write_files(files)
    return OnnxReport(*facts_of(path, content, proto), errors, bounds)


def _why_frozen(clone: nn.Module, model: nn.Module, example: Example, free: FreeAxes, line: str) -> str:
    cells = [name for name, each in clone.named_modules() if isinstance(each, CellStandIn)]
    if cells:
        return (
            f"the model's own code calls {', '.join(cells)} step by step, as often as for the example; use a "
            "layer (LSTM, GRU, RNN) in place of a cell and its loop, or export with loops=False"
        )
    fixed = f"the model's code fixes it at {line}, as do int(...), math.log(...) or a key of a dict"
    why = branch_on_a_size(model, example, free) or (
        fixed if line else "no recurrent layer runs over an axis of an input, or the model's code fixes it"
    )
    return f"{why}; export with loops=False, or name the axis: dynamic_axes"


def _on_cpu(model: nn.Module) -> nn.Module:
    if all(each.device.type == "cpu" for each in (*model.parameters(), *model.buffers())):
        return model
    return copy.deepcopy(model).cpu()


def _name(
    graph: Any,
    example: Example,
    free: FreeAxes,
    assumptions: Assumptions,
    outputs: Sequence[str] | None,
    given: Sequence[str] | None,
) -> None:
    """Name inputs, outputs and free axes."""
    if len(graph.input) != len(example.names):
        found = ", ".join(each.name for each in graph.input)
        raise RewriteError(
            f"export_onnx: the inputs {', '.join(example.names)} became {found}; pass tensors only"
        )
    count = len(graph.output)
    if outputs is None and given is not None and len(given) == count:
        outputs = different(given, example.names)
    elif outputs is None:
        outputs = different(
            ["output"] if count == 1 else [f"output_{k}" for k in range(count)], example.names
        )
    check_names("output_names", outputs, count, taken=example.names)
    name_interface(graph, example.names, outputs)
    name_axes(
        graph,
        {
            str(assumptions.shapes[k][place]): axis.name
            for k, axes in enumerate(free)
            for place, axis in axes.items()
        },
    )


def _compare(
    content: bytes,
    model: nn.Module,
    example: Example,
    free: FreeAxes,
    batch: Collection[str],
    assumptions: Assumptions,
    tolerance: float,
) -> tuple[Sizes, dict[str, float], list[dict[str, Any]]]:
    """Run torch and onnxruntime at sizes that the file claims to take; refuse it if one differs."""
    own = sizes_of(example, free)
    sizes, chosen = trials(example, free, own, batch, assumptions, partial(_runs, model))
    errors: dict[str, float] = {}
    probes = []
    with opened(content) as session:
        for trial in chosen:
            try:
                error = compare(session, model, trial.inputs, str(trial))
                said = f"and torch differ by {error:.1e} (relative) for a {trial}, more than {tolerance=:.0e}"
            except SessionError as failure:
                error = float("inf")
                said = f"does not run a {trial}: {failure}"
            errors[str(trial)] = error
            if error <= tolerance:
                probes += probe_of(session, model, trial.inputs, str(trial), tolerance)
                continue
            line = trial.line or line_broken(free, assumptions, trial.sizes)
            if not line and trial.sizes != own and error >= _ROUNDING:
                line = parting_line(model, example, trial.inputs)
            advice = _advice(error, trial, own, line)
            raise RewriteError(f"export_onnx: onnxruntime {said}; nothing was written: {advice}")
    return sizes, errors, probes


def _runs(model: nn.Module, inputs: Example) -> bool:
    try:
        run_torch(model, inputs)
    except Exception:  # whatever the user's code raises
        return False
    return True


def _advice(error: float, trial: Trial, own: Mapping[str, int], line: str) -> str:
    if error < _ROUNDING:
        return "if that is rounding to you, pass a larger tolerance"
    if trial.sizes == own:
        return "a graph fixes what the model's code decides by values, sizes or types of layers"
    other = ", ".join(f"{name} {size}" for name, size in own.items() if trial.sizes[name] != size)
    where = f"at {line} the model's code" if line else "the model's code"
    return (
        f"{where} goes another way than for {other}, and a graph has one; compute the same for every size, "
        "or bound the axis: dynamic_axes={input: {axis: torch.export.Dim(name, min=..., max=...)}}"
    )
