"""Write an explanation as one ONNX file: of samples, to prediction, SHAP values and base value."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from passes.user_code.hooks import modes_kept
from passes.user_code.randomness import random_state_kept
from passes.user_code.source import line_of
from rewriter.compiler.report import printable, render_table
from rewriter.engine.attribution import layouts
from rewriter.engine.problem import Inputs, Target
from rewriter.engine.runs.rows import decided
from rewriter.engine.tape import Outers
from rewriter.explainer.explainer import DeepExplainer
from rewriter.explainer.target import Output
from rewriter.inputs import Model, as_module
from rewriter.onnx.arguments import check_arguments, check_installed, checked_path, write_files
from rewriter.onnx.check import check_model, opened
from rewriter.onnx.example import different, read_example
from rewriter.onnx.export_onnx import WrittenFile, facts_of
from rewriter.onnx.graph import drop_shapes, shape_of, with_shapes
from rewriter.onnx.portable.constants import state_constants
from rewriter.onnx.portable.opset import TORCHS, lowered
from rewriter.onnx.runtime.session import Session, SessionError
from rewriter.onnx.torch_export import quiet
from rewriter.onnx_explainer.check import Compared, compare, mixed_rows
from rewriter.onnx_explainer.explanation import Explanation, contexts_of, places_of_tokens, target_to_trace
from rewriter.onnx_explainer.trace import Traced, traced
from rewriter.onnx_explainer.write import named, to_onnx

# Of free axes while a graph is made: all are different, and larger than what torch takes for a constant.
_SIZES = (13, 17, 19)
_BATCHES = (1, 4)
# Begins messages of what other exports do, too.
_CALLER = "export_explainer_onnx"


@dataclass(frozen=True)
class ExplainerReport(WrittenFile):
    """What :func:`rewriter.export_explainer_onnx` wrote, and how it was checked; ``print`` shows a table.

    Args:
        path: the file.
        size: its size in bytes.
        opset: version of the ONNX operator set.
        operators: how often each operator occurs, in loop bodies too.
        inputs: name and shape of each input, with names for the axes that can have any size.
        outputs: the same for each output.
        compared: the batches that were compared with the engine.

    """

    compared: tuple[Compared, ...]

    def __str__(self) -> str:
        rows = self._rows()
        rows += [("operators", f"{sum(self.operators.values())} of {len(self.operators)} kinds")]
        rows += [
            (f"batch of {each.rows}", f"differs by {each.difference:.1e}, adds up to {each.additivity:.1e}")
            for each in self.compared
        ]
        return printable(render_table(("explainer", ""), rows))


def export_explainer_onnx(
    model: Model,
    background: Any,
    path: str | os.PathLike[str],
    *,
    outputs: Sequence[int] | None = None,
    output: Output = None,
    references_as_input: bool = False,
    time_axis: int | None = None,
    opset: int | None = None,
    tolerance: float = 1e-5,
) -> ExplainerReport:
    """Write what :class:`rewriter.DeepExplainer` computes as one ONNX file, for any batch size.

    The file takes samples and returns the model's ``prediction``, ``shap_values`` in the shapes of
    :meth:`rewriter.DeepExplainer.shap_values` (one output for each input of the model), and ``base_value``.
    Where it runs neither torch nor this library is needed. Recurrent layers are Scans, forwards and back.
    Nothing is written unless onnxruntime gives what the engine gives, for several batch sizes.

    Args:
        model: any module in evaluation mode; it stays as it is.
        background: references, one tensor or array, or a list with one per input of the model.
        path: the file to write; it is replaced in one step.
        outputs: places of the outputs to explain, among all of a row, flattened; all by default.
        output: which part of what the model returns is explained, as for ``DeepExplainer``.
        references_as_input: the file takes references behind the samples, any number of them, in place of
            those of ``background``, which then are only examples.
        time_axis: an axis of the inputs that have it which may have any size, too; with
            ``references_as_input`` alone, because a background has a length of its own.
        opset: version of the ONNX operator set, 13 to 24; by default the lowest that has the operators.
        tolerance: largest difference to the engine, relative to the largest value of the same output.

    Returns:
        The report.

    Raises:
        RewriteError: if onnx is not installed, a part of the model cannot be rewritten or has no form in
            ONNX, or the file does not give what the engine gives.

    Example:
        >>> import tempfile
        >>> class Last(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.gru, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)
        ...
        ...     def forward(self, x):
        ...         return self.head(self.gru(x)[0][:, -1])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export_explainer_onnx(Last(), torch.randn(10, 5, 3), f"{folder}/why.onnx")
        >>> report.inputs, report.outputs["shap_values"], report.operators["Scan"]
        ({'x': ('batch', 5, 3)}, ('batch', 5, 3, 2), 3)

    """
    file = checked_path(path, _CALLER)
    model = as_module(model)
    check_arguments(model, opset, tolerance)
    check_installed()
    if time_axis is not None and not references_as_input:
        raise RewriteError("time_axis: a background has a length of its own; pass references_as_input=True")
    with modes_kept(model), random_state_kept():
        # Its values are what a file is held against, wherever its steps run.
        explainer = DeepExplainer(model.eval(), background, output=output, progress=False, compiled=False)
        data = explainer._data
        contexts = contexts_of(explainer._target, data)
        target = target_to_trace(explainer._asked, explainer._target.code)
        _check(target, data, contexts, stateful=explainer._target.stateful)
        chosen = _chosen(outputs, explainer._output_shape.numel())
        explanation = Explanation(
            target,
            chosen,
            _outers(target, data),
            contexts,
            places_of_tokens(target, data),
            len(data),
        )
        noted = _noted(explanation, data, _free(data, references_as_input, time_axis))
        fixed = [] if references_as_input else data
        names = read_example(model, tuple(data)).names
        with quiet():
            proto = to_onnx(noted, fixed, _weights(model), opset=max(opset or 0, TORCHS))
        axes = ["batch"] + ["time"] * (time_axis is not None) + ["references"]
        named(proto, *_names(names, references_as_input), axes)
        _check_free(proto)
        state_constants(proto.graph)
        with quiet():
            proto = lowered(with_shapes(proto, _CALLER), opset)
        drop_shapes(proto.graph)
        check_model(proto, _CALLER)
        content: bytes = proto.SerializeToString()
        checked = _compared(content, explainer, explanation, fixed, time_axis, tolerance)
    write_files({file: content}, _CALLER)
    return ExplainerReport(*facts_of(path, content, proto), checked)


def _noted(explanation: Explanation, data: Inputs, free: Sequence[Mapping[int, int]]) -> Traced:
    try:
        with quiet():
            noted = traced(explanation, [*data, *data], free)
    except RewriteError:
        raise
    except Exception as error:  # whatever the user's code raises without numbers
        line = line_of(error)
        said = str(error).strip().splitlines() or [""]
        place = f" at {line}" if line and line[0] != "<" else ""
        raise RewriteError(
            f"export_explainer_onnx: torch cannot follow the model{place} for any number of samples: "
            f"{type(error).__name__}: {said[0]}; it must not decide by values of tensors"
        ) from error
    broken = noted.first_broken()
    if broken is not None:
        raise RewriteError(
            f"export_explainer_onnx: at {broken[0]} the model's code goes another way for other sizes, "
            f"such as {broken[1]}, and a graph has one; compute the same for every number of rows and steps"
        )
    return noted


def _check_free(proto: Any) -> None:
    for value in proto.graph.input:
        if isinstance(shape_of(value)[0], int):
            raise RewriteError(
                f"export_explainer_onnx: the batch dimension of {value.name} is frozen: the model's code "
                "fixes it, as does len(x), int(...) or a loop over rows; take the size from x.shape[0]"
            )


def _weights(model: nn.Module) -> dict[int, str]:
    """Return the name of each weight, by the memory that copies share with it."""
    return {each.data_ptr(): name for name, each in (*model.named_parameters(), *model.named_buffers())}


def _check(target: Target, data: Inputs, contexts: Sequence[int], *, stateful: bool) -> None:
    if stateful:
        raise RewriteError(
            "export_explainer_onnx: the model keeps something between calls, which a file cannot; explain a "
            "model that does not"
        )
    if any(each.dtype == torch.float64 for each in (*data, *target.model.parameters())):
        raise RewriteError(
            "export_explainer_onnx: expected float32, got float64, whose small numbers torch.onnx writes as "
            "float32; export model.float() with background.float()"
        )
    decisions = decided(target, [torch.cat([each[:1]] * 2) for each in data])
    if any(not each.inputs <= set(contexts) for each in decisions):
        raise RewriteError(
            "export_explainer_onnx: the model decides by its inputs alone (a mask or a length that it reads "
            "off them); DeepExplainer follows that for each sample, a file cannot: pass the mask or the "
            "length as an input of its own"
        )


def _outers(target: Target, data: Inputs) -> list[Outers]:
    found = layouts(target, data)
    if found.counts_rows:
        raise RewriteError(
            "export_explainer_onnx: what the model runs depends on the number of rows (a loop over them, or "
            "over parts of the batch), which a file fixes; run it on all rows"
        )
    return found.outers


def _chosen(outputs: Sequence[int] | None, count: int) -> Tensor:
    if outputs is None:
        return torch.arange(count)
    places = list(outputs) if isinstance(outputs, Sequence | range) else [outputs]
    if not places or not all(type(each) is int and -count <= each < count for each in places):
        raise RewriteError(f"outputs: expected places among {count} outputs, got {outputs!r}")
    return torch.tensor([each % count for each in places])


def _free(data: Inputs, references_as_input: bool, time_axis: int | None) -> list[dict[int, int]]:
    batch, references, steps = _SIZES
    time = {} if time_axis is None else {time_axis: steps}
    if time_axis is not None and not any(0 < time_axis < each.dim() for each in data):
        raise RewriteError(f"time_axis: expected an axis of an input behind the batch, got {time_axis!r}")

    def axes(each: Tensor, rows: int) -> dict[int, int]:
        return {0: rows} | {axis: size for axis, size in time.items() if axis < each.dim()}

    free = [axes(each, batch) for each in data]
    return free + [axes(each, references) if references_as_input else {} for each in data]


def _names(names: Sequence[str], references_as_input: bool) -> tuple[list[str], list[str]]:
    several = len(names) > 1
    inputs = list(names)
    if references_as_input:
        references = [f"references_{name}" for name in names] if several else ["references"]
        inputs += different(references, names)
    values = [f"shap_values_{name}" for name in names] if several else ["shap_values"]
    return inputs, different(["prediction", *values, "base_value"], inputs)


def _compared(
    content: bytes,
    explainer: DeepExplainer,
    explanation: Explanation,
    fixed: Inputs,
    time_axis: int | None,
    tolerance: float,
) -> tuple[Compared, ...]:
    """Run the engine and onnxruntime, at several sizes."""
    data = explainer._data
    checked = []
    with opened(content, _CALLER) as session:
        for rows in _BATCHES:
            samples, references = mixed_rows(data, rows, explanation.contexts), data
            if not fixed:
                references = mixed_rows(data, len(data[0]) + 1, explanation.contexts)
                if time_axis is not None:
                    samples, references = (
                        [_longer(each, time_axis, rows) for each in side] for side in (samples, references)
                    )
            found = _run(session, samples if fixed else [*samples, *references])
            values = _engine(explainer, samples, references, explanation.chosen)
            checked.append(compare(found, values, explanation.chosen, rows, tolerance))
    return tuple(checked)


def _run(session: Session, inputs: Inputs) -> Sequence[Any]:
    try:
        return session.run({name: each.numpy() for name, each in zip(session.inputs, inputs, strict=True)})
    except SessionError as error:
        raise RewriteError(
            f"export_explainer_onnx: onnxruntime does not run a batch of {len(inputs[0])}; a size is "
            f"frozen in the graph: {error}"
        ) from error


def _longer(x: Tensor, axis: int, steps: int) -> Tensor:
    return x if axis >= x.dim() else torch.cat([x, x.narrow(axis, 0, 1).repeat_interleave(steps, axis)], axis)


def _engine(explainer: DeepExplainer, samples: Inputs, references: Inputs, chosen: Tensor) -> list[Any]:
    if references is not explainer._data:
        several = explainer._multi_input
        explainer = DeepExplainer(
            explainer._asked.model,
            references if several else references[0],
            output=explainer._asked.output,
            progress=False,
            compiled=False,
        )
    values = explainer.shap_values(samples if explainer._multi_input else samples[0], check_additivity=False)
    values = values if explainer._multi_input else [values]
    return [
        each.reshape(*each.shape[: 1 + x.dim() - 1], -1)[..., chosen.numpy()]
        for each, x in zip(values, samples, strict=True)
    ]
