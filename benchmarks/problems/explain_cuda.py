"""DeepExplainer on a GPU, beside cuDNN's gradient there and the values of the CPU."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from problems.explain_problem import ROWS, Net, Size
from timing import interleaved
from torch import Tensor

from rewriter import DeepExplainer


class OnDevice(NamedTuple):
    """A model and its data on a device.

    Args:
        model: what is explained.
        x: samples.
        background: references.
        explainer: ours.

    """

    model: Net
    x: Tensor
    background: Tensor
    explainer: DeepExplainer

    def explain(self) -> Any:
        """Explain the samples, and wait for it."""
        values = self.explainer.shap_values(self.x, check_additivity=False)
        _wait(self.x.device)
        return values

    def gradient(self) -> None:
        """Run the native layer forwards and back over all pairs, both halves, once for each output."""
        references = len(self.background)
        pairs = len(self.x) * references
        # cuDNN keeps what its backward needs in training mode alone.
        self.model.train()
        for begin in range(0, pairs, ROWS // 2):
            index = torch.arange(begin, min(pairs, begin + ROWS // 2), device=self.x.device)
            x = torch.cat([self.x[index // references], self.background[index % references]])
            output = self.model(x.requires_grad_()).sum(0)
            for k in range(len(output)):
                torch.autograd.grad(output[k], x, retain_graph=k < len(output) - 1)
        self.model.eval()
        _wait(self.x.device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def on_device(kind: str, layers: int, size: Size, device: str) -> tuple[OnDevice, OnDevice]:
    """Return the same problem on the CPU and on a device."""
    torch.manual_seed(0)
    model = Net(kind, size, layers).eval()
    x, background = torch.randn(size.M, size.T, size.I), torch.randn(size.N, size.T, size.I)
    found = []
    for where in ("cpu", device):
        moved = copy.deepcopy(model).to(where)
        data = background.to(where)
        found.append(OnDevice(moved, x.to(where), data, DeepExplainer(moved, data, progress=False)))
    return found[0], found[1]


def beside_cudnn(kind: str, layers: int, size: Size, device: str, rounds: int) -> dict[str, Any]:
    """Time one problem on a device; compare its values with the CPU's."""
    cpu, there = on_device(kind, layers, size, device)
    expected, got = cpu.explain(), there.explain()
    timed = interleaved({"ours": there.explain, "gradient": there.gradient}, rounds)
    return {
        "kind": kind,
        "layers": layers,
        **size._asdict(),
        "ours_s": timed["ours"].median,
        "gradient_s": timed["gradient"].median,
        "ours/gradient": timed["ours"].ratio_to(timed["gradient"]),
        "error": float(np.abs(got - expected).max() / np.abs(expected).max()),
    }
