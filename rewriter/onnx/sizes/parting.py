"""The line at which the user's code goes another way for other sizes."""

from __future__ import annotations

import gc
import os
import sys
from types import CodeType, FrameType
from typing import Any

from torch import nn

from passes.user_code.source import is_users
from rewriter.onnx.check import run_torch
from rewriter.onnx.example import Example
from rewriter.onnx.sizes.axes import FreeAxes

# Instructions of the user's that are remembered of a run.
_MOST = 1_000_000

Step = tuple[CodeType, int, int]


def parting_line(model: nn.Module, one: Example, other: Example) -> str:
    """Return the line after which a model runs other code for other inputs, ``""`` if it never does.

    Args:
        model: as it is.
        one: inputs.
        other: the same of other sizes.

    Example:
        >>> from rewriter.onnx.example import read_example
        >>> layer = nn.Linear(2, 2)
        >>> import torch
        >>> parting_line(layer, *(read_example(layer, torch.ones(size, 2)) for size in (1, 2)))
        ''

    """
    runs = [_steps(model, each) for each in (one, other)]
    last: Step | None = None
    for a, b in zip(*runs, strict=False):
        if a != b:
            break
        last = a
    else:
        # One is the other's beginning, or both are the same.
        if len(runs[0]) == len(runs[1]):
            return ""
    if last is None:
        return ""
    code, line, _ = last
    return f"{os.path.basename(code.co_filename)}:{line}"


def branch_on_a_size(model: nn.Module, example: Example, free: FreeAxes) -> str:
    """Say where a model goes another way for another size of an axis that is not free, ``""`` if nowhere.

    Args:
        model: as it is.
        example: inputs.
        free: axes that are not asked for.

    """
    for k, (name, tensor) in enumerate(zip(example.names, example.tensors, strict=True)):
        for axis, own in enumerate(tensor.shape):
            for size in (1, own + 1, 2 * own + 1) if axis not in free[k] else ():
                sizes: list[dict[int, int]] = [{} for _ in example.tensors]
                sizes[k][axis] = size
                other = example.resized(sizes)
                try:
                    run_torch(model, other)
                except Exception:  # whatever the user's code raises: it takes no such size
                    continue
                line = parting_line(model, example, other)
                if line:
                    return (
                        f"at {line} the model's code goes another way for axis {axis} of {name} of size "
                        f"{size} than for {own}, and fixes it there"
                    )
    return ""


def _steps(model: nn.Module, example: Example) -> list[Step]:
    """Run a model; return the instructions of the user's code that ran."""
    steps: list[Step] = []

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if event == "call":
            if not is_users(frame.f_code.co_filename):
                return None
            frame.f_trace_opcodes = True
        elif event == "opcode" and len(steps) < _MOST:
            steps.append((frame.f_code, frame.f_lineno, frame.f_lasti))
        return trace

    before = sys.gettrace()
    collects = gc.isenabled()
    # A collection would run other people's callbacks, whose instructions are not this model's.
    gc.disable()
    sys.settrace(trace)
    try:
        run_torch(model, example)
    except Exception:  # whatever the user's code raises: it went that far
        return steps
    finally:
        sys.settrace(before)
        if collects:
            gc.enable()
    return steps
