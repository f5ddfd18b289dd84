"""How fast is ``rewriter.DeepExplainer``, beside everything else that explains a recurrent model?

The yardstick is a plain gradient: one forward and K backward passes of the native fused layer over all
M·N pairs of sample and reference, both halves, which no explainer that hooks the model can beat.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from problems.explain_cuda import beside_cudnn
from problems.explain_growth import growth, plot
from problems.explain_loops import LOOPS, contestants
from problems.explain_memory import memory
from problems.explain_problem import CELLS, PEERS, Problem, Size, record
from timing import RESULTS, Timing, arguments, interleaved, publish

SIZES = [
    Size(20, 32, 8, 10, 8, 2),
    Size(50, 64, 16, 50, 4, 2),
    Size(100, 128, 32, 100, 4, 2),
    Size(200, 64, 16, 100, 8, 1),
    Size(50, 64, 16, 100, 64, 10),
]
QUICK = [Size(3, 4, 2, 3, 2, 2)]
LAYERS = [("LSTM", 1), ("LSTM", 2), ("GRU", 1), ("GRU", 2)]
QUICK_LAYERS = [("LSTM", 1), ("GRU", 2)]
PARTS = ("speed", "loops", "growth", "memory", "cuda")
# What the contestants of one problem are timed for, at least in three rounds.
SECONDS = 10
SPEED_NOTES = [
    "Size: T,H,I,N,M,K. ours: ms (additivity error). of gradient: our time over that of one forward and",
    "K backward passes of the native layer on all pairs. Peers: their time over ours (additivity error).",
    "All peers loop over outputs: they are timed on the first, and the time is multiplied by K. shap's loop",
    "over samples, too: timed on one, times M. captum's get as many samples at a time as make 512 pairs or",
    "1000 points of paths, if M has so many. captum IG: 50 steps to the mean of the references; its",
    "additivity is relative to the output there, not to the mean output that the others explain. shap",
    "Gradient: its default of 200 draws. Medians of 3 to 15 rounds, of one where a round takes over 20 s.",
    "Subnormal numbers are flushed to zero, for all of them: a plain gradient gains most from that.",
    f"-: shap on TensorFlow traces each cell; minutes, for more than {CELLS}, in stacks {CELLS // 2}.",
]
LOOP_SIZES = SIZES[:4]
# Fewer steps stay written out.
QUICK_LOOPS = [Size(5, 4, 2, 3, 2, 2)]
LOOP_NOTES = [
    "Size: T,H,I,N,M,K. A loop for t in range(T) over x[:, t] of the user's own, its time over that of",
    "nn.LSTM of the same size: over nn.LSTMCell, over two Linears, with peepholes, with a norm of the cell",
    "state, and with norms of both parts of the gates, too (Ba, Kiros and Hinton, 2016).",
]
CUDA_NOTES = [
    "Size: T,H,I,N,M,K. of gradient: our time on the GPU over that of one forward and K backward passes of",
    "cuDNN's layer on all pairs, there. error: the largest difference from the CPU's values, relative to",
    "the largest of them.",
]
MEMORY_NOTES = [
    "LSTM, T=200, H=128, I=8, N=100, K=1. Peak: what the process held more at its highest than before the",
    "explainer was made: the explainer, its first run, the result and what the allocator keeps included.",
    "An explanation that takes longer than the time given to it is stopped between two tiles; 'pairs' says",
    "how far it got. Tiles are as large however many samples there are; only the result grows with them.",
]


def measure(kind: str, layers: int, size: Size, *, quick: bool) -> dict[str, Any]:
    """Time everything on one problem."""
    problem = Problem(kind, layers, size)
    fast = within({"ours": problem.explain, "gradient": problem.gradient}, quick=quick)
    with contextlib.redirect_stderr(io.StringIO()):
        peers = problem.peers()
        errors = {name: problem.additivity_error(peer.run(), peer.base) for name, peer in peers.items()}
        runs = {name: peer.run for name, peer in peers.items()}
        timed = within({"ours": problem.explain, **runs}, quick=quick)
    ratios = {
        name: timed[name].ratio_to(timed["ours"]) * size.K * size.M / peers[name].samples for name in peers
    }
    ours = problem.additivity_error(problem.explain(), problem.mean_output)
    additivity = {"ours": ours, **errors}
    return record(kind, layers, size, fast, additivity=additivity, **{"peers/ours": ratios})


def within(contestants: Mapping[str, Callable[[], Any]], *, quick: bool) -> dict[str, Timing]:
    """Time the contestants in as many rounds as take about as long as ``SECONDS``, 3 to 15."""
    start = time.perf_counter()
    for run in contestants.values():
        run()
    taken = time.perf_counter() - start
    rounds = 1 if quick or taken > 2 * SECONDS else max(3, min(15, int(SECONDS / taken)))
    return interleaved(contestants, rounds)


def speed(options: argparse.Namespace) -> None:
    """Time all problems, and publish those that were timed also if the run is stopped."""
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, Any]] = []
    problems = [
        (size, *layer)
        for size in (QUICK if options.quick else SIZES)
        for layer in (QUICK_LAYERS if options.quick else LAYERS)
    ]
    try:
        for size, kind, layers in problems:
            records.append(measure(kind, layers, size, quick=options.quick))
            rows.append(shown(records[-1]))
            print(*rows[-1], file=sys.stderr)
    finally:
        header = ("size", "layer", "ours ms", "of gradient", *PEERS)
        publish("explain", options, header, rows, SPEED_NOTES, records, part="speed")


def shown(found: dict[str, Any]) -> tuple[str, ...]:
    """Return the row of one problem."""
    size = Size(*(found[name] for name in Size._fields))
    name = f"{found['kind']} {'2 x bidirectional' if found['layers'] > 1 else ''}".strip()
    ratios, errors = found["peers/ours"], found["additivity"]
    peers = [f"{ratios[peer]:.1f} ({errors[peer]:.0e})" if peer in ratios else "-" for peer in PEERS]
    ours = f"{found['ours_s'] * 1e3:.1f} ({errors['ours']:.0e})"
    return (",".join(map(str, size)), name, ours, f"{found['ours/gradient']:.2f}", *peers)


def show_loops(options: argparse.Namespace) -> None:
    """Time loops of users' own beside the built-in layer."""
    rows, records = [], []
    for size in QUICK_LOOPS if options.quick else LOOP_SIZES:
        timed = within(contestants(size), quick=options.quick)
        ratios = {name: timed[name].ratio_to(timed["nn.LSTM"]) for name in LOOPS}
        records.append({**size._asdict(), "lstm_s": timed["nn.LSTM"].median, "of nn.LSTM": ratios})
        milliseconds = f"{timed['nn.LSTM'].median * 1e3:.1f}"
        rows.append((",".join(map(str, size)), milliseconds, *(f"{ratios[name]:.2f}" for name in LOOPS)))
    publish("explain", options, ("size", "nn.LSTM ms", *LOOPS), rows, LOOP_NOTES, records, part="loops")


def show_growth(options: argparse.Namespace) -> None:
    """Time the growth and draw it."""
    exponents, times = growth(quick=options.quick)
    if not options.no_write:
        RESULTS.mkdir(exist_ok=True)
        plot(times)
    rows = [
        (name, f"{exponents[name]:.2f}", *(f"{value}: {seconds:.3f}" for value, seconds in points))
        for name, points in times.items()
    ]
    header = ("in", "exponent", *("s" for _ in rows[0][2:]))
    records = [{"in": name, "exponent": exponents[name], "times": times[name]} for name in times]
    note = "One LSTM layer; exponents are slopes in a plot with two logarithmic axes, explain_growth.png."
    publish("explain", options, header, rows, [note], records, part="growth")


def show_memory(options: argparse.Namespace) -> None:
    """Measure the peaks."""
    rows, records = memory(quick=options.quick)
    header = ("M", "budget MB", "peak MB", "result MB", "pairs", "s")
    publish("explain", options, header, rows, MEMORY_NOTES, records, part="memory")


def show_cuda(options: argparse.Namespace) -> None:
    """Time a GPU, where there is one."""
    if not torch.cuda.is_available():
        print("no CUDA device: the part on a GPU was not run", file=sys.stderr)
        return
    records = [
        beside_cudnn(kind, layers, size, "cuda", 1 if options.quick else 10)
        for size in (QUICK if options.quick else SIZES)
        for kind, layers in (QUICK_LAYERS if options.quick else LAYERS)
    ]
    rows = [
        (*shown({**each, "additivity": {"ours": each["error"]}, "peers/ours": {}})[:4],) for each in records
    ]
    header = ("size", "layer", "ours ms (error)", "of gradient")
    publish("explain", options, header, rows, CUDA_NOTES, records, part="cuda")


def main() -> None:
    """Run all parts, or one."""
    options = arguments("Time of DeepExplainer against its peers and against a plain gradient.", PARTS)
    warnings.simplefilter("ignore")
    # Gradients of untrained networks fade to subnormal numbers, which take processors far longer.
    torch.set_flush_denormal(True)
    runs = dict(zip(PARTS, (speed, show_loops, show_growth, show_memory, show_cuda), strict=True))
    for part in [options.part] if options.part else PARTS:
        runs[part](options)


if __name__ == "__main__":
    main()
