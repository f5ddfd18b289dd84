"""How many samples, references and outputs are explained at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rewriter.engine.problem import Problem

# What one step of a sweep touches should stay in the cache of a core; a GPU wants many rows instead.
_CACHE = {"cpu": 3_000_000, "cuda": 64_000_000}
_ROWS_WITHOUT_RECURRENCE = 4096
_SAMPLES = 16
_OUTPUTS = 16


@dataclass(frozen=True)
class Tiles:
    """Sizes of the tiles.

    Args:
        samples: run at a time.
        references: run and kept at a time.
        paired: references paired with the samples in one backward pass.
        outputs: explained in one backward pass.

    """

    samples: int
    references: int
    paired: int
    outputs: int

    @staticmethod
    def choose(problem: Problem, row_bytes: int, step_bytes: int, budget: int) -> Tiles:
        """Fit the tiles into a memory budget and one step of a sweep into the cache.

        Args:
            problem: what is to be explained.
            row_bytes: what the run of one row leaves.
            step_bytes: what one step of the widest recurrence leaves of one row; 0 without recurrences.
            budget: bytes for everything that the tiles need.

        Example:
            >>> problem = Problem([torch.zeros(8, 3)], [torch.zeros(10, 3)], torch.zeros(8, 2).int())
            >>> Tiles.choose(problem, 1000, 100, 10**9)
            Tiles(samples=8, references=10, paired=10, outputs=2)

        """
        references, outputs = problem.count, problem.outputs
        row_bytes = max(1, row_bytes)
        kept = max(1, int(0.4 * budget) // row_bytes)
        rows = max(1, int(0.4 * budget) // row_bytes)
        taken = max(1, min(problem.rows, _SAMPLES, int(0.2 * budget) // (2 * row_bytes), rows))
        if problem.own:
            taken = max(1, min(taken, kept))
            kept //= taken
        pairs = pairs_in_cache(problem.device, step_bytes, outputs)
        pairs = max(1, min(pairs, rows))
        taken = min(taken, pairs)
        explained = max(1, min(outputs, _OUTPUTS if step_bytes else outputs, rows // taken))
        paired = max(1, min(references, kept, pairs // taken, rows // (taken * explained)))
        return Tiles(taken, max(1, min(references, kept)), paired, explained)


def pairs_in_cache(device: torch.device, step_bytes: int, outputs: int) -> int:
    """Return how many pairs at a time one step of a sweep should turn back.

    Args:
        device: where.
        step_bytes: what one step of the widest recurrence leaves of one row; 0 without recurrences.
        outputs: that are explained.

    Example:
        >>> pairs_in_cache(torch.device("cpu"), 1000, 1), pairs_in_cache(torch.device("cpu"), 0, 1)
        (750, 4096)

    """
    if not step_bytes:
        return _ROWS_WITHOUT_RECURRENCE
    cache = _CACHE.get(device.type, _CACHE["cuda"])
    return max(1, cache // (step_bytes * (3 + min(outputs, _OUTPUTS))))


def spans(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut ``count`` things into spans of about equal size, at most ``size``.

    Example:
        >>> list(spans(5, 4)), list(spans(0, 4))
        ([(0, 3), (3, 5)], [])

    """
    parts = -(-count // size)
    begin = 0
    for part in range(parts):
        end = begin + -(-(count - begin) // (parts - part))
        yield begin, end
        begin = end


def default_budget(device: torch.device) -> int:
    """Return a quarter of the memory that is free now.

    Example:
        >>> default_budget(torch.device("cpu")) > 0
        True

    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 4
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system tells
        free = 2**32
    return max(free // 4, 2**26)
