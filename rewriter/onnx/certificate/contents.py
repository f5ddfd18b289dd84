"""What is in an ONNX file, as a certificate states it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewriter.onnx.graph import bodies_of, count_operators, nodes_of, opset_of, shape_of

#: Which form a certificate has.
FORMAT = "rewriter.export_onnx 1"


def certificate_path(file: Path) -> Path:
    """Return where the certificate of a file lies.

    Example:
        >>> certificate_path(Path("model.onnx")).name
        'model.onnx.json'

    """
    return file.with_name(f"{file.name}.json")


def file_facts(content: bytes) -> dict[str, Any]:
    """Return size and hash of a file.

    Example:
        >>> file_facts(b"abc")["size"]
        3

    """
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def digest_of(certificate: Mapping[str, Any]) -> str:
    """Return SHA-256 of all that a certificate holds beside that hash, by which a damaged one is known.

    Example:
        >>> digest_of({"tolerance": 1.0}) == digest_of({"sha256": "", "tolerance": 1.0})
        True

    """
    held = {key: value for key, value in certificate.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def model_facts(proto: Any) -> dict[str, Any]:
    """Return what an ``onnx.ModelProto`` holds: operators, inputs and outputs, the hash of its weights."""
    return {
        "opset": opset_of(proto),
        "operators": count_operators(proto),
        "inputs": {each.name: list(shape_of(each)) for each in proto.graph.input},
        "outputs": {each.name: list(shape_of(each)) for each in proto.graph.output},
        "weights": _hash_of_weights(proto.graph),
    }


def _hash_of_weights(graph: Any) -> str:
    """Return SHA-256 of names, types, shapes and numbers, in the order of the names."""
    import onnx

    digest = hashlib.sha256()
    graphs = (graph, *(body for node in nodes_of(graph) for body in bodies_of(node)))
    tensors = [tensor for each in graphs for tensor in each.initializer]
    for tensor in sorted(tensors, key=lambda each: str(each.name)):
        array = onnx.numpy_helper.to_array(tensor)
        digest.update(f"{tensor.name} {array.dtype} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
