"""The random number generators that a model may draw from."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class TorchDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations by which its own thread draws random numbers of torch's.

    Example:
        >>> with TorchDraws() as draws:
        ...     _ = torch.rand(2) + 1
        >>> draws.count
        1

    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note the operation, and run it."""
        self.count += torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def random_state() -> dict[str, Any]:
    """Return the states of torch's, Python's and, where it is loaded, numpy's global generators.

    Example:
        >>> before = random_state()
        >>> _ = random.random()
        >>> same_random_state(before, random_state())
        False

    """
    state: dict[str, Any] = {"torch": torch.get_rng_state(), **state_outside_torch()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def state_outside_torch() -> dict[str, Any]:
    """Return the states of Python's and, where it is loaded, numpy's global generator.

    Example:
        >>> before = state_outside_torch()
        >>> _ = random.random()
        >>> same_random_state(before, state_outside_torch())
        False

    """
    state: dict[str, Any] = {"random": random.getstate()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        state["numpy"] = numpy.random.get_state()
    return state


def same_random_state(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether nothing was drawn between two states."""
    # Python's is hundreds of integers, which are compared at once.
    return a.keys() == b.keys() and all(
        a[name] == b[name] if name == "random" else _same(a[name], b[name]) for name in a
    )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    # No Python code of numpy's may run here: a trace is being watched.
    return bool(a.tobytes() == b.tobytes() if hasattr(a, "tobytes") else a == b)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Undo what is drawn inside; a generator from which nothing was drawn is not touched.

    Example:
        >>> before = random_state()
        >>> with random_state_kept():
        ...     _ = torch.rand(1)
        >>> same_random_state(before, random_state())
        True

    """
    state = random_state()
    try:
        yield
    finally:
        # To ask by a mode who drew, this thread or another, takes several times as long as small models run.
        now = random_state()
        if not _same(now["torch"], state["torch"]):
            torch.set_rng_state(state["torch"])
        if now["random"] != state["random"]:
            random.setstate(state["random"])
        if "cuda" in state and not _same(now["cuda"], state["cuda"]):
            torch.cuda.set_rng_state_all(state["cuda"])
        if "numpy" in state and not _same(now["numpy"], state["numpy"]):
            sys.modules["numpy"].random.set_state(state["numpy"])
