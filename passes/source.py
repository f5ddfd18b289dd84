"""Where in the user's code the program is."""

from __future__ import annotations

import os
import sys
from types import FrameType

import torch

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
# Both packages of this distribution.
_OURS = (_HERE, os.path.join(os.path.dirname(_HERE[:-1]), "rewriter", ""))
_TORCH, _STANDARD = (
    os.path.dirname(os.path.abspath(path)) + os.sep for path in (torch.__file__, os.__file__)
)
#: Functions of this package that run a model: what called them is not its code.
STARTS = {"_try_trace", "observe"}


def user_line() -> str:
    """Return file and line of the innermost function that is the user's, ``""`` if none is running.

    Example:
        >>> user_line()  # the caller is found only where a pass is running a model
        ''

    """
    frame: FrameType | None = sys._getframe(1)
    found = ""
    while frame is not None:
        code = frame.f_code
        name = code.co_filename
        if name.startswith(_HERE) and code.co_name in STARTS:
            return found
        if not found and is_users(name):
            found = f"{os.path.basename(name)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def is_users(filename: str) -> bool:
    """Whether a file holds code that is neither torch's, nor Python's, nor of this package, nor made up.

    Example:
        >>> is_users(torch.__file__), is_users("model.py")
        (False, True)

    """
    if filename.startswith((*_OURS, _TORCH, "<frozen", "<eval_with_key")):
        return False
    # Site-packages may lie below the standard library's folder.
    return not filename.startswith(_STANDARD) or "site-packages" in filename
