"""How the time of ``rewriter.DeepExplainer`` grows with steps, samples, references and outputs."""

from __future__ import annotations

from problems.explain_problem import Problem, Size
from timing import RESULTS, exponent, interleaved

BASE = Size(50, 64, 16, 50, 8, 2)
AXES = {"T": (25, 50, 100, 200), "M": (4, 8, 16, 32), "N": (25, 50, 100, 200), "K": (1, 2, 4, 8)}

Times = dict[str, list[tuple[int, float]]]


def growth(*, quick: bool) -> tuple[dict[str, float], Times]:
    """Return the exponents of the time in T, M, N and K, and the times."""
    base = Size(3, 4, 2, 3, 2, 2) if quick else BASE
    times: Times = {}
    for name, values in AXES.items():
        values = (2, 4) if quick else values
        runs = {value: Problem("LSTM", 1, base._replace(**{name: value})).explain for value in values}
        timed = interleaved(runs, 2 if quick else 5)
        times[name] = [(value, timed[value].median) for value in values]
    return {name: exponent(*zip(*points, strict=True)) for name, points in times.items()}, times


def plot(times: Times) -> None:
    """Draw the growth with two logarithmic axes."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots()
    for name, points in times.items():
        first = points[0][0]
        axes.loglog(
            [v / first for v, _ in points], [s for _, s in points], "o-", label=f"{name} from {first}"
        )
    axes.set(xlabel="times the smallest", ylabel="seconds", title="Growth of DeepExplainer's time")
    axes.legend()
    figure.savefig(RESULTS / "explain_growth.png", dpi=120)
