"""How the peak memory of ``rewriter.DeepExplainer`` follows ``max_memory``; a process for each point."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from problems.explain_problem import Net, Size
from timing import RESULTS

import rewriter.explainer.explainer as engine
from rewriter import DeepExplainer

SIZE = Size(200, 128, 8, 100, 10, 1)
BUDGETS = (100_000_000, 250_000_000, 1_000_000_000)
# Seconds for each point; whole tiles of the one explanation, until they are over. One budget runs to the end.
SECONDS = 40.0
TO_THE_END = {250_000_000: 1500.0}


class TimeIsUp(Exception):  # noqa: N818 -- nothing went wrong
    """Stops an explanation between two tiles."""


def resident(what: str) -> int:
    """Return the bytes of this process that are in memory, ``VmRSS`` now or ``VmHWM`` at the highest.

    The peak that ``resource`` reports would be at least that of the process which started this one.
    """
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def peak(size: Size, budget: int, seconds: float) -> dict[str, Any]:
    """Explain in this process, and say by how much that raised its peak above what it held before."""
    warm = size._replace(T=3, N=2, M=1)
    DeepExplainer(Net("LSTM", warm, 1), torch.randn(2, 3, size.I)).shap_values(torch.randn(1, 3, size.I))
    torch.manual_seed(0)
    model = Net("LSTM", size, 1).eval()
    x, background = (torch.randn(rows, size.T, size.I) for rows in (size.M, size.N))
    pairs, attribute, start = 0, engine.attribute, time.perf_counter()

    def until_time_is_up(*args: Any, **options: Any) -> Iterator[Any]:
        nonlocal pairs
        for part in attribute(*args, **options):
            yield part
            pairs += part.pairs
            if time.perf_counter() - start > seconds:
                raise TimeIsUp

    engine.attribute = until_time_is_up
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident("VmRSS")
    explainer = DeepExplainer(model, background, max_memory=budget, progress=False)
    with contextlib.suppress(TimeIsUp):
        explainer.shap_values(x, check_additivity=False)
    raised = resident("VmHWM") - before
    result = x.numel() * size.K * 8
    return {
        **size._asdict(),
        "budget": budget,
        "peak": raised,
        "result": result,
        "pairs": pairs,
        "seconds": time.perf_counter() - start,
    }


def memory(*, quick: bool) -> tuple[list[tuple[str, ...]], list[dict[str, Any]]]:
    """Return the table and the records."""
    base = Size(3, 4, 2, 3, 2, 2) if quick else SIZE
    budgets, counts = (BUDGETS[:1], (2,)) if quick else (BUDGETS, (10, 30, 1000))
    rows, records = [], []
    for budget in budgets:
        for samples in counts:
            size = base._replace(M=samples)
            point = [*map(str, size), str(budget), str(TO_THE_END.get(budget, SECONDS))]
            command = [sys.executable, "-m", "problems.explain_memory", *point]
            ran = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=True)
            got = json.loads(ran.stdout)
            records.append(got)
            done = f"{got['pairs']} of {samples * size.N}"
            sizes = (f"{got[key] / 1e6:.0f}" for key in ("budget", "peak", "result"))
            rows.append((str(samples), *sizes, done, f"{got['seconds']:.0f}"))
            print(*rows[-1], file=sys.stderr)
    return rows, records


if __name__ == "__main__" and len(sys.argv) > 1:
    torch.set_num_threads(1)
    *_sizes, _budget, _seconds = sys.argv[1:]
    print(json.dumps(peak(Size(*map(int, _sizes)), int(_budget), float(_seconds))))
