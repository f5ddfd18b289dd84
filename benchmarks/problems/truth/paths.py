"""The explanations along paths that are compared, and the picture of distance against time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shap
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from problems.truth.models import Problem
from problems.truth.permutations import permuted
from torch import Generator, Tensor

import rewriter
from rewriter import DeepExplainer
from rewriter.engine.path.nearness import Nearer

# Rows of one gradient.
ROWS = 1 << 12
SEVERAL = 0.3


class Method(NamedTuple):
    """What is compared.

    Args:
        name: as it is shown.
        asked: of our explainer, or None.
        points: of integrated gradients.
        pairs: of permutations, for each reference.
        coalitions: of KernelExplainer, for each player.

    """

    name: str
    asked: Nearer | None = None
    points: int = 0
    pairs: int = 0
    coalitions: int = 0


OURS = [
    Method("DeepSHAP", Nearer()),
    Method("segments 2", Nearer(segments=2)),
    Method("segments 4", Nearer(segments=4)),
    Method("blocks 2", Nearer(blocks=2)),
    Method("blocks 2, 8 draws", Nearer(blocks=2, draws=8)),
    Method("blocks 2 x segments 2, 2 draws", Nearer(blocks=2, segments=2, draws=2)),
    Method("blocks 2 x segments 2, 8 draws", Nearer(blocks=2, segments=2, draws=8)),
    Method("blocks 4, 2 draws", Nearer(blocks=4, draws=2)),
    Method("blocks 4, 8 draws", Nearer(blocks=4, draws=8)),
    Method('accuracy="near"', Nearer(accuracy="near")),
    Method('accuracy="nearest"', Nearer(accuracy="nearest")),
]
BASELINE = "integrated gradients, 50 points"
OTHERS = [
    Method("integrated gradients, 8 points", points=8),
    Method(BASELINE, points=50),
    Method("permutations, 1 pair", pairs=1),
    Method("permutations, 4 pairs", pairs=4),
    Method("KernelExplainer, 16 n", coalitions=16),
]
METHODS = [*OURS, *OTHERS]


def integrated_gradients(problem: Problem, points: int) -> Tensor:
    """Return the mean over the references, by the midpoint rule; all rows of some points at once."""
    x, references = problem.x, problem.references
    total = torch.zeros_like(x)
    places = (torch.arange(points, dtype=x.dtype) + 0.5) / points
    for part in places.split(max(1, ROWS // (len(x) * len(references)))):
        # (points, references, samples, *shape)
        moves = (x - references[:, None]).unsqueeze(0)
        at = references[:, None] + part.view(-1, *[1] * (x.dim() + 1)) * moves
        at = at.flatten(0, 2).requires_grad_()
        (gradient,) = torch.autograd.grad(problem.net(at).sum(), at)
        total += (gradient.view(len(part), *moves.shape[1:]) * moves).sum((0, 1))
    return problem.by_group(total / (points * len(references)))


def kernel(problem: Problem, coalitions: int) -> Tensor:
    """Fit shap's KernelExplainer to the game of the players; seeded, all of them kept."""
    net, references, groups = problem.net, problem.references, problem.groups
    found = []
    for x in problem.x:

        def worth(rows: np.ndarray, x: Tensor = x) -> np.ndarray:
            inside = torch.from_numpy(rows > 0.5)[:, groups]
            with torch.no_grad():
                mixed = torch.where(inside[:, None], x, references).flatten(0, 1)
                parts = [net(part) for part in mixed.split(ROWS)]
            return torch.cat(parts).view(len(rows), -1).mean(1).numpy()

        explainer = shap.KernelExplainer(worth, np.zeros((1, problem.players)))
        ones = np.ones((1, problem.players))
        values = explainer.shap_values(ones, nsamples=coalitions * problem.players, l1_reg=False, silent=True)
        found.append(torch.from_numpy(values.reshape(-1)))
    return torch.stack(found)


def explained(method: Method, problem: Problem, explainer: DeepExplainer) -> tuple[Tensor, float]:
    """Return the values of the players (M, players), and milliseconds per sample.

    The explainer is made, and has run, before.
    """
    state = np.random.get_state()
    seconds: list[float] = []
    # What is quick is measured three times, because it is disturbed easily.
    while not seconds or (len(seconds) < 3 and seconds[0] < SEVERAL):
        np.random.seed(0)
        generator = Generator().manual_seed(0)
        start = time.perf_counter()
        if method.asked is not None:
            asked = method.asked if method.name == "DeepSHAP" else {**method.asked, "groups": problem.groups}
            values = problem.by_group(
                torch.from_numpy(explainer.shap_values(problem.x, **asked)).view_as(problem.x)
            )
        elif method.points:
            values = integrated_gradients(problem, method.points)
        elif method.pairs:
            pairs = method.pairs * len(problem.references)
            each = [permuted(problem.net, x, *problem[2:4], pairs, generator)[0] for x in problem.x]
            values = torch.stack(each)
        else:
            values = kernel(problem, method.coalitions)
        seconds.append(time.perf_counter() - start)
    np.random.set_state(state)
    return values, sorted(seconds)[len(seconds) // 2] / len(problem.x) * 1e3


def draw(points: Mapping[str, tuple[float, float]], ours: Sequence[str], path: Path, run: str) -> None:
    """Draw distance against time, and the front.

    Args:
        points: time over that of integrated gradients with 50 points, and distance over DeepSHAP's.
        ours: names of our methods.
        path: of the file.
        run: which results these are, noted in the file.

    """
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = rewriter.plot.front(points, ours=ours, ax=figure.subplots())
    axes.set(
        xlabel="time, over that of integrated gradients with 50 points",
        ylabel="distance to Shapley values, over DeepSHAP's",
        title="Geometric means over all models; round: ours",
    )
    for axis, ticks in ((axes.xaxis, (0.1, 0.2, 0.5, 1, 2, 5)), (axes.yaxis, (0.2, 0.3, 0.5, 0.7, 1))):
        axis.set_ticks(ticks, labels=[f"{each:g}" for each in ticks])
        axis.set_minor_locator(NullLocator())
    figure.savefig(path, dpi=110, metadata={"Description": run, "Software": None})
