"""How fast is ``rewriter.DeepExplainer``, beside everything else that explains a recurrent model?

The yardstick is a plain gradient: one forward and K backward passes of the native fused layer over all
M·N pairs of sample and reference, both halves, which no explainer that hooks the model can beat.
"""

from __future__ import annotations

import contextlib
import io
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import captum.attr
import numpy as np
import shap
import torch
from timing import RESULTS, Timing, arguments, exponent, interleaved, publish
from torch import Tensor, nn

import rewriter
from rewriter import DeepExplainer


class Size(NamedTuple):
    """A problem.

    Args:
        T: steps.
        H: hidden features.
        I: input features.
        N: references.
        M: samples.
        K: outputs.

    """

    T: int
    H: int
    I: int  # noqa: E741
    N: int
    M: int
    K: int


SIZES = [
    Size(20, 32, 8, 10, 8, 2),
    Size(50, 64, 16, 50, 4, 2),
    Size(100, 128, 32, 100, 4, 2),
    Size(200, 64, 16, 100, 8, 1),
    Size(50, 64, 16, 100, 64, 10),
]
QUICK = [Size(3, 4, 2, 3, 2, 2)]
BASE = Size(50, 64, 16, 50, 8, 2)
GROWTH = {"T": (25, 50, 100, 200), "M": (4, 8, 16, 32), "N": (25, 50, 100, 200), "K": (1, 2, 4, 8)}
# Rows that the native layer takes at a time, so that every size fits into memory.
ROWS = 1024
SECONDS = 10
PEERS = ("shap", "shap on TensorFlow", "captum DeepLiftShap", "captum IG", "shap Gradient")


class Net(nn.Module):
    """Recurrent layers and a linear head on the last output."""

    def __init__(self, kind: str, size: Size, layers: int) -> None:
        super().__init__()
        options = {"num_layers": layers, "bidirectional": layers > 1, "batch_first": True}
        self.rnn = getattr(nn, kind)(size.I, size.H, **options)
        self.head = nn.Linear(size.H * (2 if layers > 1 else 1), size.K)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, K)."""
        return self.head(self.rnn(x)[0][:, -1])


class Problem:
    """A model, samples and references, and all that explains them.

    Args:
        kind: ``"LSTM"`` or ``"GRU"``.
        layers: one, or two bidirectional ones.
        size: of everything.

    """

    def __init__(self, kind: str, layers: int, size: Size) -> None:
        torch.manual_seed(0)
        self.size = size
        self.model = Net(kind, size, layers).eval()
        self.x = torch.randn(size.M, size.T, size.I)
        self.background = torch.randn(size.N, size.T, size.I)
        self.decomposed = rewriter.decompose(self.model)
        self.ours = DeepExplainer(self.model, self.background, progress=False)

    def explain(self) -> Any:
        """Run ours."""
        return self.ours.shap_values(self.x, check_additivity=False)

    def gradient(self) -> None:
        """Run the yardstick."""
        pairs = self.size.M * self.size.N
        for begin in range(0, pairs, ROWS // 2):
            index = torch.arange(begin, min(pairs, begin + ROWS // 2))
            x = torch.cat([self.x[index // self.size.N], self.background[index % self.size.N]])
            output = self.model(x.requires_grad_()).sum(0)
            for k in range(self.size.K):
                torch.autograd.grad(output[k], x, retain_graph=k < self.size.K - 1)

    def stock(self) -> Any:
        """Explain the first sample with stock shap; it takes one sample at a time anyway."""
        explainer = shap.DeepExplainer(self.decomposed, self.background)
        return lambda: explainer.shap_values(self.x[:1], check_additivity=False)

    def tensorflow(self) -> Any:
        """Explain the first sample with stock shap on a model written by hand in TensorFlow."""
        sys.path.insert(0, str(RESULTS.parent.parent / "examples"))
        import tensorflow_cells

        manual = tensorflow_cells.sequence_model(self.model.rnn, self.model.head, self.size.T)
        explainer = shap.DeepExplainer(manual, self.background.numpy())
        return lambda: explainer.shap_values(self.x[:1].numpy(), check_additivity=False)

    def captum_shap(self) -> Any:
        """Explain the first sample with captum's DeepLiftShap."""
        explainer = captum.attr.DeepLiftShap(self.decomposed)
        return lambda: np.stack(
            [
                explainer.attribute(self.x[:1], self.background, target=k).detach().numpy()
                for k in range(self.size.K)
            ],
            -1,
        )

    def captum_ig(self) -> Any:
        """Integrate gradients of the native model to the mean of the references, for the first sample."""
        explainer = captum.attr.IntegratedGradients(self.model)
        mean = self.background.mean(0, keepdim=True)
        return lambda: np.stack(
            [explainer.attribute(self.x[:1], mean, target=k, n_steps=50).numpy() for k in range(self.size.K)],
            -1,
        )

    def gradient_explainer(self) -> Any:
        """Explain the first sample with shap's GradientExplainer."""
        explainer = shap.GradientExplainer(self.model, self.background)
        return lambda: explainer.shap_values(self.x[:1], rseed=0)

    def additivity_error(self, values: Any) -> float:
        """Return max |sum of attributions - (f(x) - E f)| over the samples that are explained."""
        with torch.no_grad():
            expected = (self.model(self.x[: len(values)]) - self.model(self.background).mean(0)).numpy()
        return float(np.abs(np.asarray(values).sum((1, 2)) - expected).max())


def peers(problem: Problem, layers: int) -> dict[str, Callable[[], Any]]:
    """Return what explains one sample, by name."""
    makers = dict(
        zip(
            PEERS,
            (
                problem.stock,
                problem.tensorflow,
                problem.captum_shap,
                problem.captum_ig,
                problem.gradient_explainer,
            ),
            strict=True,
        )
    )
    if layers > 1:
        del makers["shap on TensorFlow"]  # written by hand for one layer
    return {name: make() for name, make in makers.items()}


def measure(kind: str, layers: int, size: Size, *, quick: bool) -> dict[str, Any]:
    """Time everything on one problem; seconds of the peers are those of one sample times M."""
    problem = Problem(kind, layers, size)
    fast = within({"ours": problem.explain, "gradient": problem.gradient}, quick=quick)
    others = peers(problem, layers)
    with contextlib.redirect_stderr(io.StringIO()):
        errors = {name: problem.additivity_error(run()) for name, run in others.items()}
        timed = within({"ours": problem.explain, **others}, quick=quick)
    result: dict[str, Any] = {"kind": kind, "layers": layers, **size._asdict()}
    result["ours_s"] = fast["ours"].median
    result["gradient_s"] = fast["gradient"].median
    result["ours/gradient"] = fast["ours"].ratio_to(fast["gradient"])
    result["additivity"] = {"ours": problem.additivity_error(problem.explain()), **errors}
    result["peers/ours"] = {name: timed[name].ratio_to(timed["ours"]) * size.M for name in others}
    return result


def within(contestants: Mapping[str, Callable[[], Any]], *, quick: bool) -> dict[str, Timing]:
    """Time the contestants in as many rounds as take about as long as ``SECONDS``, 3 to 15."""
    start = time.perf_counter()
    for run in contestants.values():
        run()
    taken = time.perf_counter() - start
    return interleaved(contestants, 1 if quick else max(3, min(15, int(SECONDS / taken))))


def growth(*, quick: bool) -> tuple[dict[str, float], dict[str, list[tuple[int, float]]]]:
    """Return the exponents of the time in T, M, N and K, and the times."""
    base = QUICK[0] if quick else BASE
    times: dict[str, list[tuple[int, float]]] = {}
    for name, values in GROWTH.items():
        values = (2, 4) if quick else values
        runs = {str(v): Problem("LSTM", 1, base._replace(**{name: v})).explain for v in values}
        timed = interleaved(runs, 2 if quick else 5)
        times[name] = [(v, timed[str(v)].median) for v in values]
    return {name: exponent(*zip(*points, strict=True)) for name, points in times.items()}, times


def plot(times: dict[str, list[tuple[int, float]]]) -> None:
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


def peak(samples: int, budget: int) -> None:
    """Print by how many bytes an explanation raises the peak of this process."""
    problem = Problem("LSTM", 1, Size(200, 128, 32, 100, samples, 2))
    problem.ours = DeepExplainer(problem.model, problem.background, max_memory=budget, progress=False)
    DeepExplainer(Net("LSTM", QUICK[0], 1), torch.randn(2, 3, 2)).shap_values(torch.randn(1, 3, 2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    problem.explain()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(grown * 1024, time.perf_counter() - start)


def memory(counts: tuple[int, ...], budgets: tuple[int, ...]) -> list[str]:
    """Return lines that say how the peak follows the budget, one process each."""
    lines = []
    for budget in budgets:
        for samples in counts:
            ran = subprocess.run(
                [sys.executable, __file__, "--peak", str(samples), str(budget)],
                capture_output=True,
                text=True,
                check=True,
            )
            grown, seconds = map(float, ran.stdout.split())
            lines.append(
                f"memory: T=200 H=128 I=32 N=100 K=2 M={samples}, budget {budget / 1e6:.0f} MB: peak "
                f"{grown / 1e6:.0f} MB more, {seconds:.1f} s"
            )
    return lines


def main() -> None:
    """Time all problems, the growth, and the memory."""
    if sys.argv[1:2] == ["--peak"]:
        peak(int(sys.argv[2]), int(sys.argv[3]))
        return
    options = arguments("Time of DeepExplainer against its peers and against a plain gradient.")
    warnings.simplefilter("ignore")
    rows, records = [], []
    for size in QUICK if options.quick else SIZES:
        for kind in ("LSTM", "GRU"):
            for layers in (1, 2):
                got = measure(kind, layers, size, quick=options.quick)
                name = f"{kind} {'2 x bidirectional' if layers > 1 else ''}".strip()
                shown = [
                    f"{got['peers/ours'][peer]:.0f} ({got['additivity'][peer]:.0e})"
                    if peer in got["peers/ours"]
                    else "-"
                    for peer in PEERS
                ]
                ours = f"{got['ours_s'] * 1e3:.1f} ({got['additivity']['ours']:.0e})"
                rows.append((",".join(map(str, size)), name, ours, f"{got['ours/gradient']:.2f}", *shown))
                records.append(got)
                print(*rows[-1], file=sys.stderr)
    exponents, times = growth(quick=options.quick)
    notes = [
        "Size: T,H,I,N,M,K. ours: ms (additivity error). of gradient: our time over that of one forward and",
        "K backward passes of the native layer on all pairs. Peers: their time over ours (additivity error);",
        "one sample is timed and multiplied by M.",
        "growth: " + ", ".join(f"{name}^{value:.2f}" for name, value in exponents.items()),
    ]
    if not options.quick:
        notes += memory((10, 100, 1000), (250_000_000,)) + memory((100,), (1_000_000_000,))
    if not options.no_write:
        RESULTS.mkdir(exist_ok=True)
        plot(times)
    publish("explain", options, ("size", "layer", "ours ms", "of gradient", *PEERS), rows, notes, records)


if __name__ == "__main__":
    main()
