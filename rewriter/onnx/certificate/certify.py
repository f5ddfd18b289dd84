"""Write the certificate of an export."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from rewriter.equivalence.provenance import hash_of_weights, versions
from rewriter.onnx.certificate.contents import FORMAT, digest_of, file_facts, model_facts
from rewriter.onnx.certificate.probe import (
    describe_inputs,
    describe_output,
    difference,
    is_finite,
    make_inputs,
)
from rewriter.onnx.check import run_torch
from rewriter.onnx.example import Example
from rewriter.onnx.runtime.session import Session

# Bytes of a probe: a certificate is small.
_LARGE = 100_000


def probe_of(
    session: Session, model: nn.Module, example: Example, sizes: str, tolerance: float
) -> list[dict[str, Any]]:
    """Describe inputs like ``example`` in a few numbers, and what torch gives for them.

    Returns:
        One description, or none where it would be large, or the model does not take drawn numbers.

    """
    arrays = {name: each.numpy() for name, each in zip(session.inputs, example.tensors, strict=True)}
    described = describe_inputs(arrays)
    if described is None:
        return []
    drawn = make_inputs(described)
    try:
        outputs = run_torch(model, example.with_tensors([torch.as_tensor(each) for each in drawn.values()]))
        found = session.run(drawn)
    except Exception:  # whatever the user's code raises for numbers that it was not made for
        return []
    expected = [each.numpy() for each in outputs]
    kept = [describe_output(each) for each in expected]
    agree = len(kept) == len(found) and all(map(lambda a, b: difference(a, b) <= tolerance, kept, found))
    probe = {"sizes": sizes, "inputs": described, "outputs": kept}
    if not is_finite(expected) or not agree or len(json.dumps(probe)) > _LARGE:
        return []
    return [probe]


def certify(
    proto: Any,
    content: bytes,
    errors: Mapping[str, float],
    bounds: Mapping[str, tuple[int, int | None]],
    probes: Sequence[dict[str, Any]],
    tolerance: float,
    model: nn.Module,
) -> bytes:
    """Return the certificate of a file.

    Args:
        proto: the exported model.
        content: the file.
        errors: worst relative difference at each choice of sizes.
        bounds: the smallest and the largest size of each free axis.
        probes: what :func:`probe_of` gave.
        tolerance: what they had to keep.
        model: what was exported.

    """
    used = versions() | {
        name: importlib.metadata.version(name) for name in ("onnx", "onnxruntime", "onnxscript")
    }
    certificate: dict[str, Any] = {
        "format": FORMAT,
        "file": file_facts(content),
        "model": model_facts(proto),
        "weights_in_torch": hash_of_weights(model),
        "tolerance": tolerance,
        "checks": [{"sizes": sizes, "error": error} for sizes, error in errors.items()],
        "bounds": {name: list(each) for name, each in bounds.items()},
        "probes": list(probes),
        "versions": used,
    }
    certificate["sha256"] = digest_of(certificate)
    return (json.dumps(certificate, indent=1) + "\n").encode()
