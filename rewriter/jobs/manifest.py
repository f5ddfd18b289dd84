"""What the results of a job depend on, as it is kept in their folder, and what differs from it later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from rewriter.jobs.tables import Array

# Readers of data sets pass over names that begin so.
MANIFEST = "_job.json"
FORMAT = 2
_ANSWERS = 1024
# What other processors make of the same sums; relative to an output, and a tenth of that to the largest.
_ROUNDING = {"float32": 1e-5, "float64": 1e-9}


def answers(outputs: Array) -> dict[str, Any]:
    """Return what tells models apart whose weights are the same: what they give, at most 1024 numbers of it.

    Example:
        >>> answers(np.ones((2, 1), np.float32))
        {'dtype': 'float32', 'numbers': [1.0, 1.0]}

    """
    flat = outputs.reshape(-1)
    chosen = np.linspace(0, flat.size - 1, min(flat.size, _ANSWERS)).round().astype(int)
    return {"dtype": str(outputs.dtype), "numbers": flat[chosen].tolist()}


def as_text(facts: Mapping[str, Any]) -> str:
    """Return facts as JSON; arrays are lists in it.

    Example:
        >>> as_text({"groups": np.arange(2)}).split()
        ['{', '"groups":', '[', '0,', '1', ']', '}']

    """
    return json.dumps(facts, indent=2, default=_plain)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic | Tensor) else repr(value)


def kept(folder: Path) -> dict[str, Any] | None:
    """Return the facts that a folder was begun with, or None where there are none."""
    try:
        found = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"format": "damaged"}


def differences(began: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs, in a line each; outputs may differ by rounding.

    Example:
        >>> differences({"rows": 3, "format": 2}, {"rows": 4, "format": 2})
        ['rows: 3 then, 4 now']

    """
    plain = json.loads(as_text(now))
    # Facts of another format are no others' to compare.
    names = ["format"] if began.get("format") != plain.get("format") else sorted({*began, *plain})
    found = []
    for name in names:
        then, new = began.get(name), plain.get(name)
        if name == "outputs" and then and new:
            place = _differs(then, new)
            if place is not None:
                then, new = (each["numbers"][place : place + 1] for each in (then, new))
                found.append(
                    f"outputs for the background: {then} then, {new} now, of the same weights or others"
                )
        elif then != new:
            found.append(f"{name}: {then} then, {new} now")
    return found


def _differs(then: Mapping[str, Any], now: Mapping[str, Any]) -> int | None:
    """Return where the first output is that differs by more than rounding."""
    old, new = np.array(then["numbers"]), np.array(now["numbers"])
    if then["dtype"] != now["dtype"] or old.shape != new.shape:
        return 0
    allowed = _ROUNDING[now["dtype"]]
    apart = ~np.isclose(new, old, rtol=allowed, atol=0.1 * allowed * float(np.abs(old).max()))
    return int(np.argmax(apart)) if apart.any() else None
