"""Paths from references to samples, walked switch by switch by an explainer of single pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer
from rewriter.engine.path.points import Path

Array = np.ndarray[Any, Any]


def walked(
    model: nn.Module, x: Tensor, references: Tensor, path: Path, players: Tensor | None = None
) -> tuple[Array, Array]:
    """Return attributions, and what they are of each draw and reference, (draws, N, M, *shape, K).

    Args:
        model: in float64.
        x: (M, *shape).
        references: (N, *shape).
        path: blocks, segments, draws and seed.
        players: (*shape), or each element one.

    """
    shape = x.shape[1:]
    each = torch.arange(shape.numel()).view(shape) if players is None else players
    path = Path(path.blocks, path.segments, path.draws, path.seed, (each,))
    explainer = DeepExplainer(model, references[:1], progress=False)
    found = []
    for draw in range(path.draws):
        for n, reference in enumerate(references):
            block = path.orders(draw, [n])[0][each]
            assert block.unique().tolist() == list(range(path.blocks))
            both = []
            for order in (block, block.max() - block):
                point, total = reference.expand_as(x), np.zeros(())
                for b in range(path.blocks):
                    for s in range(1, path.segments + 1):
                        step = x if s == path.segments else reference + s / path.segments * (x - reference)
                        after = torch.where(order == b, step, point)
                        total = total + explainer.shap_values(after, references=point[:, None])
                        point = after
                assert torch.equal(point, x)
                both.append(total)
            found.append((both[0] + both[1]) / 2)
    by_draw = np.stack(found).reshape(path.draws, len(references), *found[0].shape)
    return by_draw.mean((0, 1)), by_draw


def by_permutations(model: nn.Module, x: Tensor, references: Tensor, path: Path) -> Array:
    """Return what antithetic permutations give: changes of outputs as one element after the other is set."""
    count = x[0].numel()
    path = Path(count, 1, path.draws, path.seed, (torch.arange(count).view(x.shape[1:]),))
    total = torch.zeros(*x.flatten(1).shape, model(x[:1]).shape[1], dtype=torch.float64)
    with torch.no_grad():
        for draw in range(path.draws):
            for n, reference in enumerate(references):
                order = path.orders(draw, [n])[0].argsort()
                for players in (order, order.flip(0)):
                    point = reference.expand_as(x).flatten(1).clone()
                    f = model(point.view_as(x))
                    for player in players:
                        point[:, player] = x.flatten(1)[:, player]
                        after = model(point.view_as(x))
                        total[:, player] += after - f
                        f = after
    return (total / (2 * path.draws * len(references))).view(*x.shape, -1).numpy()
