"""How many samples, references, draws and points of a path are explained at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rewriter.engine.attribution import Size
from rewriter.engine.path.points import Path
from rewriter.engine.problem import Problem
from rewriter.engine.tiles import pairs_in_cache

_OUTPUTS = 16


@dataclass(frozen=True)
class PathTiles:
    """Sizes of the tiles.

    Args:
        samples: run at a time.
        references: likewise.
        draws: likewise.
        points: of odd number, of each path, likewise.
        outputs: explained in one backward pass.

    """

    samples: int
    references: int
    draws: int
    points: int
    outputs: int

    @staticmethod
    def choose(problem: Problem, path: Path, size: Size, budget: int) -> PathTiles:
        """Fit the tiles into a memory budget, and one step of a sweep into the cache.

        Args:
            problem: what is to be explained.
            path: what lies between references and samples.
            size: what the run of one row leaves.
            budget: bytes for everything that the tiles need.

        Example:
            >>> import torch
            >>> from rewriter.engine.merged_batch import Layouts
            >>> problem = Problem([torch.zeros(8, 3)], [torch.zeros(10, 3)], torch.zeros(8, 2).int())
            >>> PathTiles.choose(problem, Path(blocks=2), Size(200_000, 1000, Layouts()), 10**9)
            PathTiles(samples=8, references=10, draws=1, points=1, outputs=2)

        """
        points = (path.switches + 1) // 2
        outputs = min(problem.outputs, _OUTPUTS if size.step_bytes else problem.outputs)
        kept = max(1, size.row_bytes)
        # Attributions, by draw and reference, in float64.
        held = 24 * problem.outputs * sum(each[0].numel() for each in problem.samples)
        # Each is in a pair on both sides.
        rows = pairs_in_cache(problem.device, size.step_bytes, problem.outputs) // 2
        # A point, and what it faces, are kept, in part twice; multipliers of both sides are not all at once.
        while outputs > 1 and 0.8 * budget < 2 * kept * (3 + outputs):
            outputs //= 2
        rows = min(rows, int(0.8 * budget / (kept * (3 + outputs) + held)))
        points = max(1, min(points, rows // path.directions))
        left = max(1, rows // (path.directions * points))
        samples = min(problem.rows, max(math.isqrt(left), left // problem.count))
        references = min(problem.count, left // samples)
        draws = min(path.draws, left // (samples * references))
        return PathTiles(samples, references, draws, points, outputs)
