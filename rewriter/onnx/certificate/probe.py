"""Inputs that a few numbers describe, and what torch gave for them, to check a file again without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Numbers of an output that are kept, and integers of an input, which no generator can stand for.
_KEPT = 64
_MOST_INTEGERS = 4096


def describe_inputs(arrays: Mapping[str, Any]) -> dict[str, Any] | None:
    """Describe inputs: floating-point ones by mean and spread, others as they are; None if that were large.

    Example:
        >>> described = describe_inputs({"x": np.ones((2, 3), np.float32)})
        >>> make_inputs(described)["x"].shape
        (2, 3)

    """
    described: dict[str, Any] = {}
    for name, array in arrays.items():
        entry: dict[str, Any] = {"type": str(array.dtype), "shape": list(array.shape)}
        if array.dtype.kind == "f":
            numbers = array[np.isfinite(array)].astype(np.float64)
            entry["average"] = float(numbers.mean()) if numbers.size else 0.0
            entry["spread"] = float(numbers.std()) if numbers.size else 1.0
        elif array.dtype.kind in "iub" and array.size <= _MOST_INTEGERS:
            entry["numbers"] = array.ravel().tolist()
        else:
            return None
        described[name] = entry
    return described


def make_inputs(described: Mapping[str, Any]) -> dict[str, Any]:
    """Make the inputs that were described, the same on every machine."""
    made = {}
    for k, (name, entry) in enumerate(described.items()):
        if "numbers" in entry:
            array = np.array(entry["numbers"])
        else:
            # NumPy has promised that this generator's numbers never change.
            array = np.random.RandomState(k).standard_normal(int(np.prod(entry["shape"])))
            array = array * entry["spread"] + entry["average"]
        made[name] = array.astype(entry["type"]).reshape(entry["shape"])
    return made


def describe_output(array: Any) -> dict[str, Any]:
    """Keep the shape of an output and some of its numbers."""
    flat = array.ravel()
    return {
        "type": str(array.dtype),
        "shape": list(array.shape),
        "scale": max(1.0, float(np.abs(flat.astype(np.float64)).max())) if flat.size else 1.0,
        "numbers": flat[_kept(flat.size)].tolist(),
    }


def difference(described: Mapping[str, Any], found: Any) -> float:
    """Return the worst difference to what was kept, relative to its scale; infinity for other shapes.

    Example:
        >>> difference(describe_output(np.array([1.0, 4.0])), np.array([1.0, 3.0]))
        0.25

    """
    if [str(found.dtype), list(found.shape)] != [described["type"], described["shape"]]:
        return float("inf")
    expected = np.array(described["numbers"], dtype=np.float64)
    flat = found.ravel()[_kept(found.size)].astype(np.float64)
    if not expected.size:
        return 0.0
    worst = float(np.abs(expected - flat).max()) / float(described["scale"])
    return worst if worst == worst else float("inf")


def is_finite(outputs: Sequence[Any]) -> bool:
    """Whether all numbers in some outputs are finite."""
    return all(bool(np.isfinite(each).all()) for each in outputs)


def _kept(size: int) -> Any:
    return np.linspace(0, max(0, size - 1), min(size, _KEPT)).astype(np.int64)
