"""How near to exact Shapley values paths come: blocks, segments and draws beside integrated gradients.

Models are small and in float64, as in ``truth.py``. Cost is counted, not timed: switches for each pair of
a sample and a reference, of which DeepSHAP has one, and of integrated gradients points. A switch takes about
two passes forwards and backwards where there are several.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from problems.truth_methods import exact
from problems.truth_tasks import FEATURES, interactions, nonlinear, untrained
from timing import arguments, publish
from torch import Generator, Tensor, nn

from rewriter import DeepExplainer
from rewriter.engine.path.nearness import Nearer

SAMPLE_SEED, STEPS = 1000, 4


class Method(NamedTuple):
    """What is compared.

    Args:
        name: as it is shown.
        cost: switches, or gradients, for each pair.
        asked: of our explainer; of integrated gradients None.

    """

    name: str
    cost: int
    asked: Nearer | None


METHODS = [
    Method("DeepSHAP", 1, Nearer()),
    Method("integrated gradients, 8 points", 8, None),
    Method("integrated gradients, 50 points", 50, None),
    Method("segments 2", 2, Nearer(segments=2)),
    Method("segments 4", 4, Nearer(segments=4)),
    Method("blocks 2", 4, Nearer(blocks=2)),
    Method("blocks 2, 8 draws", 32, Nearer(blocks=2, draws=8)),
    Method("blocks 2 x segments 2, 2 draws", 16, Nearer(blocks=2, segments=2, draws=2)),
    Method("blocks 4, 2 draws", 16, Nearer(blocks=4, draws=2)),
    Method("blocks 4, 8 draws", 64, Nearer(blocks=4, draws=8)),
    Method("permutations, 1 draw", 24, Nearer(blocks=12)),
    Method("permutations, 4 draws", 96, Nearer(blocks=12, draws=4)),
    Method('accuracy="fast"', 4, Nearer(accuracy="fast")),
    Method('accuracy="near"', 32, Nearer(accuracy="near")),
    Method('accuracy="nearest"', 128, Nearer(accuracy="nearest")),
]


class Attention(nn.Module):
    """A recurrent layer whose steps are weighed by attention, at random weights."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.rnn = nn.LSTM(FEATURES, 16, batch_first=True)
        self.query, self.head = nn.Linear(16, 1), nn.Linear(16, 1)
        for weight in self.rnn.parameters():
            weight.data *= 3

    def forward(self, x: Tensor) -> Tensor:
        """Return one number for each row."""
        y = self.rnn(x)[0]
        return self.head((torch.softmax(3 * self.query(y), 1) * y).sum(1))


class Transformer(nn.Module):
    """A layer of a transformer, at random weights."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.into, self.head = nn.Linear(FEATURES, 16), nn.Linear(16, 1)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.places = nn.Parameter(torch.randn(STEPS, 16))

    def forward(self, x: Tensor) -> Tensor:
        """Return one number for each row."""
        return self.head(self.layer(3 * self.into(x) + self.places).mean(1))


def integrated_gradients(net: nn.Module, x: Tensor, references: Tensor, points: int) -> Tensor:
    """Return the mean over the references, by the midpoint rule."""
    total = torch.zeros_like(x)
    for reference in references:
        for k in range(points):
            at = (reference + (k + 0.5) / points * (x - reference)).requires_grad_()
            (gradient,) = torch.autograd.grad(net(at).sum(), at)
            total += gradient * (x - reference)
    return total / (points * len(references))


def explained(method: Method, net: nn.Module, x: Tensor, references: Tensor) -> Tensor:
    """Return the attributions of a method."""
    if method.asked is None:
        return integrated_gradients(net, x, references, method.cost)
    values = DeepExplainer(net, references, progress=False).shap_values(x, **method.asked)
    return torch.from_numpy(values).view_as(x)


def main() -> None:
    """Compare on all models."""
    options = arguments("Distance to exact Shapley values of paths from references to samples.")
    warnings.simplefilter("ignore")
    seeds, count, others, updates = (1, 1, 2, 5) if options.quick else (5, 10, 8, 1500)
    models: dict[str, Callable[[int], nn.Module]] = {
        "LSTM, trained": lambda seed: nonlinear("LSTM", seed, updates)[0],
        "GRU, trained": lambda seed: nonlinear("GRU", seed, updates)[0],
        "LSTM, 5 x random": lambda seed: untrained("LSTM", seed, 5),
        "GRU, 5 x random": lambda seed: untrained("GRU", seed, 5),
        "attention": lambda seed: Attention(seed).double().eval(),
        "transformer": lambda seed: Transformer(seed).double().eval(),
    }
    methods = METHODS[:6] if options.quick else METHODS
    found: dict[tuple[str, str], list[float]] = {}
    worst: dict[str, float] = {}
    for name, made in models.items():
        for seed in range(seeds):
            net = made(seed)
            generator = Generator().manual_seed(SAMPLE_SEED + seed)
            x, references = (interactions(n, generator)[0].double() for n in (count, others))
            assert x.shape[1:] == (STEPS, FEATURES)
            truth = exact(net, x, references)
            with torch.no_grad():
                change = (net(x) - net(references).mean(0)).view(-1)
            for method in methods:
                values = explained(method, net, x, references)
                distance = float((values - truth).abs().sum() / truth.abs().sum())
                found.setdefault((method.name, name), []).append(distance)
                gap = float((values.flatten(1).sum(1) - change).abs().max())
                worst[method.name] = max(worst.get(method.name, 0.0), gap)
    rows, records = [], []
    for method in methods:
        cells = [found[method.name, name] for name in models]
        ratios = [
            math.log(mine / plain)
            for name in models
            for mine, plain in zip(found[method.name, name], found["DeepSHAP", name], strict=True)
        ]
        ratio = math.exp(statistics.fmean(ratios))
        shown = [f"{statistics.fmean(each):.3f}" for each in cells]
        rows.append((method.name, str(method.cost), *shown, f"{ratio:.2f}", f"{worst[method.name]:.0e}"))
        records.append(
            {"method": method.name, "cost": method.cost, "ratio": ratio, "additivity": worst[method.name]}
            | dict(zip(models, cells, strict=True))
        )
    notes = [
        f"{seeds} models each, {count} samples of {STEPS} x {FEATURES} numbers, {others} references.",
        "Each cell: sum of |value - exact Shapley value| over sum of |exact|, the mean over the models.",
        "cost: switches, or gradients, for each pair. ratio: to DeepSHAP's distance, the geometric mean.",
        "additivity: worst |sum - (f(x) - mean f(references))|.",
    ]
    publish("truth_paths", options, ("method", "cost", *models, "ratio", "additivity"), rows, notes, records)


if __name__ == "__main__":
    main()
