"""DeepExplainer on a GPU, beside cuDNN's gradient there and the values of the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from problems.explain_problem import Problem, Size, record
from timing import interleaved


class OnDevice(Problem):
    """The same, whose runs end when the device has done them."""

    def explain(self) -> Any:
        """Run ours."""
        return self._done(super().explain())

    def gradient(self) -> None:
        """Run the yardstick: cuDNN keeps what its backward needs in training mode alone."""
        self.model.train()
        super().gradient()
        self.model.eval()
        self._done(None)

    def _done(self, result: Any) -> Any:
        if self.x.is_cuda:
            torch.cuda.synchronize(self.x.device)
        return result


def beside_cudnn(kind: str, layers: int, size: Size, device: str, rounds: int) -> dict[str, Any]:
    """Time one problem on a device; compare its values with the CPU's."""
    there = OnDevice(kind, layers, size, device=device)
    expected, got = Problem(kind, layers, size).explain(), there.explain()
    timed = interleaved({"ours": there.explain, "gradient": there.gradient}, rounds)
    error = float(np.abs(got - expected).max() / np.abs(expected).max())
    return record(kind, layers, size, timed, error=error)
