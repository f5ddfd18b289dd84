"""What an ONNX model must pass before it is written."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from passes.errors import RewriteError
from passes.user_code.source import where_failed
from rewriter.onnx.containers import is_keyed, leaves_of, tensors_of
from rewriter.onnx.example import Example, close
from rewriter.onnx.graph import RECURRENT, nodes_of, operator_name
from rewriter.onnx.runtime.session import Session, SessionError

# Said of an operator that onnxruntime has, but not for the type: convolutions in float64, for one.
_LACKS = "NOT_IMPLEMENTED"


def check_operators(proto: Any, allowed: Collection[str]) -> None:
    """Refuse recurrent operators, and any that is not in ``allowed``, also in loops and branches.

    Raises:
        RewriteError: with every operator that is refused and the first node that has it.

    """
    refused: dict[str, str] = {}
    for graph in (proto.graph, *proto.functions):
        for node in nodes_of(graph):
            name = operator_name(node)
            if name in RECURRENT or name not in allowed:
                refused.setdefault(name, node.name or ", ".join(node.output))
    if not refused:
        return
    listed = ", ".join(f"{name} (node {node})" for name, node in refused.items())
    others = sorted(set(refused) - RECURRENT)
    asked = ", ".join(map(repr, others))
    advice = (
        f"if your runtime has them, pass operators=rewriter.ONNX_OPERATORS | {{{asked}}}, or your own list"
        if others
        else "a recurrent operator is never written"
    )
    raise RewriteError(f"export_onnx: the graph holds operators that are not allowed: {listed}; {advice}")


def check_model(proto: Any, caller: str = "export_onnx") -> None:
    """Run the full check of ``onnx.checker``; ``caller`` begins the message of an error.

    Raises:
        RewriteError: with what the checker says.

    """
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RewriteError(f"{caller}: onnx.checker refuses the model: {error}") from error


def opened(content: bytes, caller: str = "export_onnx") -> Session:
    """Load a model in onnxruntime.

    Args:
        content: the serialised model.
        caller: begins the message of an error.

    Raises:
        RewriteError: if onnxruntime does not load it.

    """
    try:
        return Session(content)
    except SessionError as error:
        advice = "; export model.float()" if _LACKS in str(error) else ""
        raise RewriteError(f"{caller}: onnxruntime does not load the model: {error}{advice}") from error


def compare(session: Session, model: nn.Module, example: Example, what: str) -> float:
    """Return the worst difference of onnxruntime to torch over all outputs, relative to max(1, max |torch|).

    Some sizes give nothing finite (a spread over one step): there it is enough that both give the same.

    Args:
        session: the exported model.
        model: the reference.
        example: the inputs, in the order of the exported model's.
        what: names the inputs in an error message.

    Raises:
        RewriteError: if torch does not run them, or gives another number of tensors.
        SessionError: if onnxruntime does not run them.

    """
    try:
        expected = run_torch(model, example)
    except Exception as error:  # whatever the user's code raises
        raise RewriteError(
            f"export_onnx: the model does not run a {what}: {type(error).__name__}: {error}, "
            f"{where_failed(error)}; let it take any size, by x.shape in place of numbers, or say how "
            "far it goes: dynamic_axes={input: {axis: torch.export.Dim(name, min=..., max=...)}}"
        ) from error
    feed = {name: each.numpy() for name, each in zip(session.inputs, example.tensors, strict=True)}
    outputs = session.run(feed)
    if len(outputs) != len(expected):
        raise RewriteError(f"export_onnx: torch gives {len(expected)} tensors, onnxruntime {len(outputs)}")
    return max(
        (relative_error(a, torch.as_tensor(b), nothing=0.0) for a, b in zip(expected, outputs, strict=True)),
        default=0.0,
    )


def check_reference(model: nn.Module, example: Example) -> list[str] | None:
    """Run a model on its example inputs, and see that its outputs can be exported and compared.

    Returns:
        The names that the model gives its outputs, by keys or fields, None if it gives none.

    Raises:
        RewriteError: if it does not run, gives something else than tensors or nothing finite, or gives
            something else each time.

    """
    try:
        outputs = _run(model, example)
        again = run_torch(model, example)
    except Exception as error:  # whatever the user's code raises
        raise RewriteError(
            f"example_inputs do not run through the model: {type(error).__name__}: {error}, "
            f"{where_failed(error)}; pass them as the model is called: one argument, a tuple of them, or a "
            "mapping of keyword arguments"
        ) from error
    leaves = list(leaves_of(outputs))
    for place, leaf in leaves:
        if not isinstance(leaf, Tensor) and leaf is not None:
            advice = (
                "pad it with torch.nn.utils.rnn.pad_packed_sequence"
                if isinstance(leaf, PackedSequence)
                else "return tensors only, in tuples, lists, mappings or dataclasses"
            )
            raise RewriteError(
                f"export_onnx: expected tensors in the model's output, got {type(leaf).__name__} at "
                f"output{''.join(map(_index, place))}; {advice}"
            )
        if isinstance(leaf, Tensor) and not _is_plain(leaf):
            raise RewriteError(
                "export_onnx: expected plain tensors in the model's output, got a sparse, nested or "
                f"quantized one at output{''.join(map(_index, place))}; return what to_dense(), "
                "to_padded_tensor(0.0) or dequantize() makes of it"
            )
    named = [("_".join(place), leaf) for place, leaf in leaves if leaf is not None]
    first = [leaf for _, leaf in named]
    if not first:
        raise RewriteError("export_onnx: the model's output holds no tensor; return the tensors to export")
    if len(first) != len(again) or not all(close(a, b) for a, b in zip(first, again, strict=True)):
        raise RewriteError(
            "export_onnx: the model gives different outputs for the same input, so nothing could be "
            "compared; it must draw no random numbers and keep no state from one call to the next"
        )
    _check_finite(first, "example input")
    return [name for name, _ in named] if is_keyed(outputs) else None


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested


def _check_finite(outputs: Sequence[Tensor], what: str) -> None:
    """Refuse to compare what agrees whatever was computed."""
    floats = [each for each in outputs if each.is_floating_point() and each.numel()]
    finite = [bool(each.isfinite().any()) for each in floats]
    if (floats and not any(finite)) or any(
        each.isnan().any() and not some for each, some in zip(floats, finite, strict=True)
    ):
        raise RewriteError(
            f"export_onnx: an output of the model holds no finite number for the {what}, so nothing could "
            "be compared; pass example_inputs that give finite numbers"
        )


def run_torch(model: nn.Module, example: Example) -> list[Tensor]:
    """Run a model on copies of its inputs; return the tensors among its outputs.

    What it warns of is not said: most inputs are of sizes that nobody asked for.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [leaf.detach() for leaf in tensors_of(_run(model, example))]


def _run(model: nn.Module, example: Example) -> Any:
    # The model may write into its inputs.
    example = example.with_tensors([tensor.clone() for tensor in example.tensors])
    with torch.no_grad(), warnings.catch_warnings():
        # torch's own LSTM says that its faster kernel has no projections; whoever exports cannot help it.
        warnings.filterwarnings("ignore", "LSTM with projections is not supported", UserWarning)
        return model(*example.args, **example.kwargs)


def relative_error(expected: Tensor, found: Tensor, *, nothing: float = float("inf")) -> float:
    """Return max |found - expected| / max(1, max |expected|); infinity if shapes or types differ.

    NaN agrees with NaN at the same places; if nothing finite was compared besides, ``nothing`` is returned.

    Example:
        >>> relative_error(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 3.0]))
        0.25

    """
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return float("inf")
    a, b = expected.double(), found.double()
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()):
        return float("inf")
    # NaN becomes 0 and the infinities 1 and -1, which must then be the same.
    if not torch.equal(a[~finite].sign().nan_to_num(), b[~finite].sign().nan_to_num()):
        return float("inf")
    if not finite.any():
        return nothing if a.isnan().any() else 0.0
    a, b = a[finite], b[finite]
    return float((a - b).abs().max() / a.abs().max().clamp(min=1.0))


def _index(key: str) -> str:
    return f"[{key}]" if key.isdigit() else f"[{key!r}]"
