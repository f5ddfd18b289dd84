"""Export to ONNX without recurrent operators, checked before anything is written."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from passes.errors import RewriteError
from passes.user_code.hooks import modes_kept
from passes.user_code.randomness import random_state_kept
from rewriter.compiler.report import printable, render_table
from rewriter.inputs import Model, as_module
from rewriter.onnx.arguments import check_arguments, check_installed, checked_path, given_axes, write_file
from rewriter.onnx.check import Runtime, check_model, check_operators, check_reference, run_torch
from rewriter.onnx.example import Axes, Example, check_names, infer_batch_axes, read_example
from rewriter.onnx.export import evaluation_clone, has_users_loops, rewritten_clone, time_axes, to_onnx
from rewriter.onnx.graph import count_operators, name_axes, name_interface, shape_of, tidy

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


@dataclass(frozen=True)
class OnnxReport:
    """What :func:`rewriter.export_onnx` wrote, and how it was checked; ``print`` shows it as a table.

    Args:
        path: the file.
        size: its size in bytes.
        opset: version of the ONNX operator set.
        operators: how often each operator occurs, in loop bodies and functions too.
        inputs: name and shape of each input, with names for the axes that can have any size.
        outputs: the same for each output.
        errors: for each batch size that was compared, the worst difference of onnxruntime to torch,
            relative to max(1, max |torch|).

    Example:
        >>> report = OnnxReport("a.onnx", 1024, 18, {"Gemm": 1}, {"x": ("batch", 3)}, {}, {1: 0.0})
        >>> report.to_dict()["operators"]
        {'Gemm': 1}

    """

    path: str
    size: int
    opset: int
    operators: Mapping[str, int]
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]
    errors: Mapping[int, float]

    def __str__(self) -> str:
        rows = [("file", f"{self.path}, {self.size:,} bytes, opset {self.opset}")]
        rows += [("input", f"{name} {_shown(shape)}") for name, shape in self.inputs.items()]
        rows += [("output", f"{name} {_shown(shape)}") for name, shape in self.outputs.items()]
        counts = [f"{count} {op}" for op, count in self.operators.items()]
        for k in range(0, len(counts), _PER_ROW):
            rows += [("" if k else "operators", ", ".join(counts[k : k + _PER_ROW]))]
        rows += [(f"batch of {size}", f"relative error {error:.1e}") for size, error in self.errors.items()]
        return printable(render_table(("onnx", ""), rows))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, ready for ``json.dumps``."""
        return asdict(self)


def export_onnx(
    model: Model,
    example_inputs: Any,
    path: str | os.PathLike[str],
    *,
    opset: int = 18,
    batch_axes: Mapping[str, int] | None = None,
    loops: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    operators: Collection[str] = ONNX_OPERATORS,
    tolerance: float = 1e-6,
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
        opset: version of the ONNX operator set, 18 to 24.
        batch_axes: which axis of which input is the batch, by input name. By default this is found out
            by running the model on every row twice.
        loops: make a Scan of each recurrent layer, so that the file takes sequences of any length, and of
            each loop over a cell of your own that is recognised, for as many steps as the code takes.
        input_names: names of the inputs; by default those of ``forward``'s parameters.
        output_names: names of the outputs; by default ``output``, or ``output_0``, ``output_1``, ….
        operators: the ONNX operators that the file may hold; LSTM, GRU and RNN are refused in any case,
            Scan is allowed with ``loops``.
        tolerance: largest difference between onnxruntime and torch, relative to max(1, max |torch|).

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
    check_arguments(model, opset)
    check_installed()
    # Scripted submodules cannot be cloned: they are shared, and evaluation mode would stay.
    with modes_kept(model), torch.no_grad(), random_state_kept():
        source = _on_cpu(model)
        rewritten = rewritten_clone(source, rolled=loops)
        reference = evaluation_clone(source)
        example = read_example(source, example_inputs)
        check_reference(reference, example)
        example = example.with_names(example.names if input_names is None else input_names)
        axes = (
            infer_batch_axes(lambda each: run_torch(reference, each), example)
            if batch_axes is None
            else given_axes(example, batch_axes)
        )
        # torch.export takes a size of 1 for a constant.
        example = _at_batch(example, axes, max(2, _batch_of(example, axes)))
        users = has_users_loops(rewritten)
        lengths = time_axes(rewritten, reference, example, axes) if loops else None
        proto = to_onnx(rewritten, source, example, axes, lengths, opset=opset)
        _name(proto.graph, example, axes, output_names, timed=loops and not users)
        proto = tidy(proto)
        check_operators(proto, {*operators, "Scan"} if loops else operators)
        check_model(proto)
        content: bytes = proto.SerializeToString()
        errors = _compare(content, reference, example, proto.graph, axes, tolerance)
    write_file(file, content)
    return OnnxReport(
        os.fspath(path),
        len(content),
        opset,
        count_operators(proto),
        {each.name: shape_of(each) for each in proto.graph.input},
        {each.name: shape_of(each) for each in proto.graph.output},
        errors,
    )


def _on_cpu(model: nn.Module) -> nn.Module:
    if all(each.device.type == "cpu" for each in (*model.parameters(), *model.buffers())):
        return model
    return copy.deepcopy(model).cpu()


def _batch_of(example: Example, axes: Axes) -> int:
    sizes = {
        name: tensor.shape[axis]
        for name, tensor, axis in zip(example.names, example.tensors, axes, strict=True)
        if axis is not None
    }
    if len(set(sizes.values())) != 1:
        raise RewriteError(f"batch_axes: expected one batch size in all inputs, got {sizes}")
    return next(iter(sizes.values()))


def _at_batch(example: Example, axes: Axes, size: int) -> Example:
    return example.resized([{} if axis is None else {axis: size} for axis in axes])


def _name(graph: Any, example: Example, axes: Axes, outputs: Sequence[str] | None, *, timed: bool) -> None:
    """Name inputs, outputs and free axes; see that all axes are free that should be."""
    if len(graph.input) != len(example.names):
        found = ", ".join(each.name for each in graph.input)
        raise RewriteError(
            f"export_onnx: the inputs {', '.join(example.names)} became {found}; pass tensors only"
        )
    count = len(graph.output)
    if outputs is None:
        outputs = ["output"] if count == 1 else [f"output_{k}" for k in range(count)]
    check_names("output_names", outputs, count, taken=example.names)
    name_interface(graph, example.names, outputs)
    free = [shape_of(value) for value in graph.input]
    symbols = {
        shape[axis]: name
        for shape, axis, name in zip(free, axes, example.names, strict=True)
        if axis is not None
    }
    for symbol, name in symbols.items():
        if isinstance(symbol, int):
            raise RewriteError(
                f"export_onnx: the batch dimension of {name} is frozen at {symbol}; the model's code fixes it"
            )
    name_axes(graph, str(next(iter(symbols))))
    if timed and not any("time" in shape_of(value) for value in graph.input):
        raise RewriteError(
            "export_onnx: loops=True, but the length of the sequences is frozen: no recurrent layer runs "
            "over an axis of an input, or the model's code fixes it; export with loops=False"
        )


def _compare(
    content: bytes, model: nn.Module, example: Example, graph: Any, axes: Axes, tolerance: float
) -> dict[int, float]:
    """Run torch and onnxruntime at three batch sizes, and three lengths where they are free."""
    runtime = Runtime(content)
    batch = _batch_of(example, axes)
    timed = any("time" in shape_of(value) for value in graph.input)
    errors: dict[int, float] = {}
    for size, longer in ((1, 1), (batch, 0), (2 * batch + 1, 4)):
        sizes = [
            {
                axis: size if symbol == "batch" else tensor.shape[axis] + longer
                for axis, symbol in enumerate(shape_of(value))
                if isinstance(symbol, str)
            }
            for value, tensor in zip(graph.input, example.tensors, strict=True)
        ]
        what = f"batch of {size}" + (f", {longer} steps longer" if longer and timed else "")
        errors[size] = runtime.worst_error(model, example.resized(sizes), what)
        if not errors[size] <= tolerance:
            raise RewriteError(
                f"export_onnx: onnxruntime and torch differ by {errors[size]:.1e} (relative) for a {what}, "
                f"more than tolerance={tolerance:.0e}; nothing was written: "
                f"{_advice(errors[size], longer, timed)}"
            )
    return errors


def _advice(error: float, longer: int, timed: bool) -> str:
    if error < _ROUNDING:
        return "if that is rounding to you, pass a larger tolerance"
    if longer and timed:
        return "the model's code fixes the length, as a loop over steps does; export with loops=False"
    return "a graph fixes what the model's code decides by values, sizes or types of layers"


def _shown(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
