"""Where in the user's code the program is."""

from __future__ import annotations

import functools
import os
import sys
from types import FrameType

import torch

import passes


def folder_of(file: str | None) -> str:
    """Return the folder in which a file lies, with a separator behind it.

    Example:
        >>> folder_of(torch.__file__).endswith(os.path.join("torch", ""))
        True

    """
    return os.path.join(os.path.dirname(os.path.abspath(str(file))), "")


# The root of the package, not the folder of this file, which may move.
OURS = folder_of(passes.__file__)
TORCH = folder_of(torch.__file__)
# Both packages of this distribution.
_OWN = (OURS, os.path.join(os.path.dirname(OURS[:-1]), "rewriter", ""))
_STANDARD = folder_of(os.__file__)
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
        if code.co_name in STARTS and name.startswith(OURS):
            return found
        if not found and is_users(name):
            found = f"{os.path.basename(name)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def is_library(filename: str) -> bool:
    """Whether a file holds code of torch or of this package.

    Example:
        >>> is_library(torch.__file__), is_library("model.py")
        (True, False)

    """
    return filename.startswith((*_OWN, TORCH))


@functools.lru_cache(maxsize=4096)
def is_users(filename: str) -> bool:
    """Whether a file holds code that is neither torch's, nor Python's, nor of this package, nor made up.

    Example:
        >>> is_users(torch.__file__), is_users("model.py")
        (False, True)

    """
    if filename.startswith((*_OWN, TORCH, "<frozen", "<eval_with_key")):
        return False
    # Site-packages may lie below the standard library's folder.
    return not filename.startswith(_STANDARD) or "site-packages" in filename
