"""How near to exact Shapley values two players in each cell come, at what cost.

``shap_values(x, cells="shapley")`` beside the rules of atoms, by themselves and with segments and blocks, on
recurrent models in float64.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from argparse import Namespace
from collections.abc import Callable
from typing import NamedTuple

import torch
from problems.truth.methods import exact
from problems.truth.models import SAMPLE_SEED, Attention
from problems.truth.motions import GROUPS, by_group, exact_of_groups, motions, series
from problems.truth.tasks import interactions, nonlinear, untrained
from timing import publish
from torch import Generator, Tensor, nn

from rewriter import DeepExplainer
from rewriter.engine.path.nearness import Nearer

PATHS = {
    "DeepSHAP": Nearer(),
    "segments 2": Nearer(segments=2),
    "segments 4": Nearer(segments=4),
    "blocks 2": Nearer(blocks=2),
    "blocks 2 x segments 2, 2 draws": Nearer(blocks=2, segments=2, draws=2),
    "blocks 4, 2 draws": Nearer(blocks=4, draws=2),
    "blocks 4, 8 draws": Nearer(blocks=4, draws=8),
}
METHODS = {
    f"{name}, two players" if cells == "shapley" else name: Nearer(**{**asked, "cells": cells})
    for name, asked in PATHS.items()
    for cells in ("deeplift", "shapley")
}
MOTIONS = "BasicMotions"


class Problem(NamedTuple):
    """What is explained.

    Args:
        net: the model.
        x: samples.
        references: of all.
        truth: exact Shapley values, (M, *).
        asked: of each explanation.

    """

    net: nn.Module
    x: Tensor
    references: Tensor
    truth: Tensor
    asked: Nearer


def attention(seed: int) -> nn.Module:
    """Return an LSTM whose steps are weighed by attention, at random weights."""
    torch.manual_seed(seed)
    return Attention(3).double().eval()


def small(net: nn.Module, seed: int, count: int, others: int) -> Problem:
    """Return a problem of 12 inputs."""
    generator = Generator().manual_seed(SAMPLE_SEED + seed)
    x, references = (interactions(n, generator)[0].double() for n in (count, others))
    return Problem(net, x, references, exact(net, x, references), Nearer())


def real(seed: int, count: int, others: int, updates: int) -> Problem:
    """Return a problem of real series: those of a class, by some of all that were trained on."""
    net = motions(seed, updates)
    (x, y), (train, _) = series("test"), series("train")
    generator = Generator().manual_seed(SAMPLE_SEED + seed)
    x = x[y == 0][:count].double()
    references = train[torch.randperm(len(train), generator=generator)[:others]].double()
    return Problem(net, x, references, exact_of_groups(net, x, references), Nearer(groups=GROUPS))


def compare(options: Namespace) -> None:
    """Compare on all models."""
    warnings.simplefilter("ignore")
    seeds, count, others, updates = (1, 1, 2, 5) if options.quick else (5, 6, 8, 1500)
    made: dict[str, Callable[[int], Problem]] = {
        "LSTM, trained": lambda s: small(nonlinear("LSTM", s, updates)[0], s, count, others),
        "GRU, trained": lambda s: small(nonlinear("GRU", s, updates)[0], s, count, others),
        "LSTM, 5 x random": lambda s: small(untrained("LSTM", s, 5), s, count, others),
        "GRU, 5 x random": lambda s: small(untrained("GRU", s, 5), s, count, others),
        "attention": lambda s: small(attention(s), s, count, others),
        MOTIONS: lambda s: real(s, -(-count // 2), others // 2, -(-updates // 15)),
    }
    methods = dict(list(METHODS.items())[:4]) if options.quick else METHODS
    found: dict[tuple[str, str], list[float]] = {}
    worst: dict[str, float] = {}
    spent: dict[str, list[float]] = {}
    for name, make in made.items():
        for seed in range(-(-seeds // 2) if name == MOTIONS else seeds):
            net, x, references, truth, asked = make(seed)
            explainer = DeepExplainer(net, references, progress=False)
            with torch.no_grad():
                change = (net(x) - net(references).mean(0)).view(-1)
            for method, path in methods.items():
                start = time.perf_counter()
                values = explainer.shap_values(x, **Nearer(**{**asked, **path}))
                seconds = time.perf_counter() - start
                got = torch.from_numpy(values).view_as(x)
                shares = by_group(got) if name == MOTIONS else got
                distance = float((shares - truth).abs().sum() / truth.abs().sum())
                found.setdefault((method, name), []).append(distance)
                gap = float((got.flatten(1).sum(1) - change).abs().max())
                worst[method] = max(worst.get(method, 0.0), gap)
                if name == MOTIONS:
                    spent.setdefault(method, []).append(1000 * seconds / len(x))
    rows, records = [], []
    for method in methods:
        cells = [found[method, name] for name in made]
        ratio = math.exp(
            statistics.fmean(
                math.log(mine / plain)
                for name in made
                for mine, plain in zip(found[method, name], found["DeepSHAP", name], strict=True)
            )
        )
        shown = [f"{statistics.fmean(each):.3f}" for each in cells]
        milliseconds = statistics.median(spent[method])
        row = (method, *shown, f"{ratio:.2f}", f"{milliseconds:.1f}", f"{worst[method]:.0e}")
        rows.append(row)
        records.append(
            {"method": method, "ratio": ratio, "ms": milliseconds, "additivity": worst[method]}
            | dict(zip(made, cells, strict=True))
        )
    notes = [
        f"{seeds} models each, {count} samples of 4 x 3 numbers, {others} references.",
        f"{MOTIONS}: {-(-seeds // 2)} LSTMs of 32 units, {-(-count // 2)} series of 100 x 6, halves of "
        f"channels as 12 players, {others // 2} references.",
        "Each cell: sum of |value - exact Shapley value| over sum of |exact|, the mean over the models.",
        "ratio: to DeepSHAP's distance, the geometric mean.",
        f"ms: for one series of {MOTIONS}, the median over the models.",
        "additivity: worst |sum - (f(x) - mean f(references))|.",
    ]
    head = ("method", *made, "ratio", "ms", "additivity")
    publish("truth_cells", options, head, rows, notes, records)
