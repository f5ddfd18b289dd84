"""What the benchmarks share: interleaved timing, growth with length, and the form of the results."""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from rewriter.compiler.report import render_table

Name = TypeVar("Name", bound=Hashable)

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """The times of one contestant, one per round.

    Args:
        seconds: one time per round.

    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median time."""
        return statistics.median(self.seconds)

    def ratio_to(self, baseline: Timing) -> float:
        """Return the median of the round-by-round ratios, in which the machine's drift cancels."""
        return statistics.median(own / base for own, base in zip(self.seconds, baseline.seconds, strict=True))


def interleaved(contestants: Mapping[Name, Callable[[], object]], rounds: int) -> dict[Name, Timing]:
    """Time all contestants once per round, after one round to warm up.

    Args:
        contestants: what to run, by name, in the order of each round.
        rounds: how often each is timed.

    """
    for run in contestants.values():
        run()
    seconds: dict[Name, list[float]] = {name: [] for name in contestants}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            gc.collect()
            for name, run in contestants.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(tuple(each)) for name, each in seconds.items()}


def exponent(lengths: Sequence[int], seconds: Sequence[float]) -> float:
    """Fit ``seconds ~ length ** exponent``: the slope in a plot with two logarithmic axes."""
    x, y = [math.log(each) for each in lengths], [math.log(each) for each in seconds]
    return statistics.linear_regression(x, y).slope


def arguments(description: str, parts: Sequence[str] = ()) -> argparse.Namespace:
    """Read the options that all benchmarks have.

    Args:
        description: of the benchmark.
        parts: what it can run alone, as ``--part``.

    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: a smoke run")
    parser.add_argument("--no-write", action="store_true", help="print the results, write no file")
    if parts:
        parser.add_argument("--part", choices=parts, help="run only this; results of the others are kept")
    return parser.parse_args()


def environment() -> dict[str, object]:
    """Say what the times depend on, and how busy the machine was."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": f"cpu, {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
    }


def publish(
    name: str,
    options: argparse.Namespace,
    header: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    notes: Sequence[str],
    records: Sequence[Mapping[str, object]],
    part: str | None = None,
    folder: str = "",
) -> None:
    """Print the results, and write them as text and as JSON unless ``--no-write``.

    Args:
        name: of the benchmark below ``benchmarks``, and of the files below ``results``.
        options: what :func:`arguments` returned.
        header: of the table.
        rows: of the table.
        notes: lines below the table.
        records: the same results as data.
        part: of a benchmark that runs in parts, whose results stand below each other in the same files.
        folder: in which the benchmark stands, below this one.

    """
    command = " ".join(["python", f"benchmarks/{Path(folder, name)}.py", *sys.argv[1:]])
    found = environment()
    line = ", ".join(f"{key} {value}" for key, value in found.items())
    text = "\n".join([f"$ {command}", f"# {line}", "", render_table(header, rows), "", *notes])
    print(text)
    if options.no_write:
        return
    RESULTS.mkdir(exist_ok=True)
    name = name.replace("/", "_")
    data = {"command": command, "environment": found, "results": list(records)}
    if part is not None:
        file = RESULTS / f"{name}.json"
        parts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        parts[part] = data | {"text": text}
        data, text = parts, "\n\n".join(each["text"] for each in parts.values())
    (RESULTS / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
