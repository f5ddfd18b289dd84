"""What an ONNX model must pass before it is written."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from passes.errors import RewriteError
from rewriter._onnx_example import Example
from rewriter._onnx_graph import RECURRENT, nodes_of, operator_name


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
    advice = (
        f"if your runtime has them, pass operators=rewriter.ONNX_OPERATORS | {set(others)}, or your own list"
        if others
        else "a recurrent operator is never written"
    )
    raise RewriteError(f"export_onnx: the graph holds operators that are not allowed: {listed}; {advice}")


def check_model(proto: Any) -> None:
    """Run the full check of ``onnx.checker``.

    Raises:
        RewriteError: with what the checker says.

    """
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RewriteError(f"export_onnx: onnx.checker refuses the model: {error}") from error


class Runtime:
    """An ONNX model in onnxruntime, on the CPU.

    Args:
        content: the serialised model.

    Raises:
        RewriteError: if onnxruntime does not load it.

    """

    def __init__(self, content: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base but this
            raise RewriteError(f"export_onnx: onnxruntime does not load the model: {error}") from error

    def worst_error(self, model: nn.Module, example: Example, what: str) -> float:
        """Return the worst difference to torch over all outputs, relative to max(1, max |torch|).

        Args:
            model: the reference.
            example: the inputs.
            what: names the inputs in an error message.

        Raises:
            RewriteError: if onnxruntime does not run them.

        """
        expected = run_torch(model, example)
        names = [each.name for each in self.session.get_inputs()]
        feed = {name: each.numpy() for name, each in zip(names, example.tensors, strict=True)}
        try:
            outputs: Sequence[Any] = self.session.run(None, feed)
        except Exception as error:  # its exceptions have no common base but this
            raise RewriteError(
                f"export_onnx: onnxruntime does not run a {what}; a size is frozen in the graph: {error}"
            ) from error
        if len(outputs) != len(expected):
            raise RewriteError(
                f"export_onnx: torch gives {len(expected)} tensors, onnxruntime {len(outputs)}"
            )
        return max(
            (relative_error(a, torch.as_tensor(b)) for a, b in zip(expected, outputs, strict=True)),
            default=0.0,
        )


def run_torch(model: nn.Module, example: Example) -> list[Tensor]:
    """Run a model; return the tensors among its outputs."""
    with torch.no_grad(), warnings.catch_warnings():
        # torch's own LSTM says that its faster kernel has no projections; whoever exports cannot help it.
        warnings.filterwarnings("ignore", "LSTM with projections is not supported", UserWarning)
        outputs = model(*example.args, **example.kwargs)
    return [leaf.detach() for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def relative_error(expected: Tensor, found: Tensor) -> float:
    """Return max |found - expected| / max(1, max |expected|); infinity if shapes or types differ.

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
    a, b = a[finite], b[finite]
    return float((a - b).abs().max() / a.abs().max().clamp(min=1.0)) if a.numel() else 0.0
