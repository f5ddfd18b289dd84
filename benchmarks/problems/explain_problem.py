"""The problems of benchmarks/explain.py: a model, its samples and references, and all that explains them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import captum.attr
import numpy as np
import shap
import torch
from timing import RESULTS, Timing
from torch import Tensor, nn

import rewriter
from rewriter import DeepExplainer

# Rows that the native layer takes at a time, so that every size fits into memory.
ROWS = 1024
STEPS = 50
# shap traces every cell that is written out in TensorFlow; for more than these, or half in a stack, that
# takes minutes.
CELLS = 200
PEERS = ("shap", "shap on TensorFlow", "captum DeepLiftShap", "captum IG", "shap Gradient")


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


def record(kind: str, layers: int, size: Size, times: Mapping[str, Timing], **more: Any) -> dict[str, Any]:
    """Return what was measured of ours and of the yardstick, as data."""
    return {
        "kind": kind,
        "layers": layers,
        **size._asdict(),
        "ours_s": times["ours"].median,
        "gradient_s": times["gradient"].median,
        "ours/gradient": times["ours"].ratio_to(times["gradient"]),
        **more,
    }


class Peer(NamedTuple):
    """Somebody else's explainer, on the first output.

    Args:
        run: explains the first samples.
        samples: how many.
        base: the output that its attributions are relative to.

    """

    run: Callable[[], Any]
    samples: int
    base: Tensor


class Problem:
    """A model, samples and references, and all that explains them.

    Args:
        kind: ``"LSTM"`` or ``"GRU"``.
        layers: one, or two bidirectional ones.
        size: of everything.
        max_memory: bytes for ours.
        device: where it all is; the same numbers anywhere.

    """

    def __init__(
        self, kind: str, layers: int, size: Size, max_memory: int | None = None, device: str = "cpu"
    ) -> None:
        torch.manual_seed(0)
        self.size = size
        self.model = Net(kind, size, layers).to(device).eval()
        self.x = torch.randn(size.M, size.T, size.I).to(device)
        self.background = torch.randn(size.N, size.T, size.I).to(device)
        # All peers loop over the outputs.
        self.single = Net(kind, size._replace(K=1), layers).to(device).eval()
        self.single.rnn = self.model.rnn
        with torch.no_grad():
            self.single.head.weight.copy_(self.model.head.weight[:1])
            self.single.head.bias.copy_(self.model.head.bias[:1])
        self.decomposed = rewriter.decompose(self.single)
        self.ours = DeepExplainer(self.model, self.background, max_memory=max_memory, progress=False)
        with torch.no_grad():
            self.mean_output = self.model(self.background).mean(0)

    def explain(self) -> Any:
        """Run ours."""
        return self.ours.shap_values(self.x, check_additivity=False)

    def gradient(self) -> None:
        """Run the yardstick."""
        pairs = self.size.M * self.size.N
        for begin in range(0, pairs, ROWS // 2):
            index = torch.arange(begin, min(pairs, begin + ROWS // 2), device=self.x.device)
            x = torch.cat([self.x[index // self.size.N], self.background[index % self.size.N]])
            output = self.model(x.requires_grad_()).sum(0)
            for k in range(self.size.K):
                torch.autograd.grad(output[k], x, retain_graph=k < self.size.K - 1)

    def peers(self) -> dict[str, Peer]:
        """Return all that explains the problem, by name."""
        makers = (self._stock, self._tensorflow, self._captum_shap, self._captum_ig, self._gradients)
        made = {name: make() for name, make in zip(PEERS, makers, strict=True)}
        return {name: peer for name, peer in made.items() if peer is not None}

    def _stock(self) -> Peer:
        explainer = shap.DeepExplainer(self.decomposed, self.background)
        return Peer(
            lambda: explainer.shap_values(self.x[:1], check_additivity=False), 1, self.mean_output[:1]
        )

    def _tensorflow(self) -> Peer | None:
        rnn = self.model.rnn
        cells = self.size.T * rnn.num_layers * (1 + rnn.bidirectional)
        if cells > (CELLS // 2 if rnn.bidirectional else CELLS):
            return None
        explainer = shap.DeepExplainer(keras_model(self.single, self.size.T), self.background.numpy())
        x = self.x[:1].numpy()
        return Peer(lambda: explainer.shap_values(x, check_additivity=False), 1, self.mean_output[:1])

    def _captum_shap(self) -> Peer:
        explainer = captum.attr.DeepLiftShap(self.decomposed)
        samples = max(1, min(self.size.M, ROWS // 2 // self.size.N))
        x = self.x[:samples]
        return Peer(
            lambda: explainer.attribute(x, self.background, target=0).detach().numpy(),
            samples,
            self.mean_output[:1],
        )

    def _captum_ig(self) -> Peer:
        explainer = captum.attr.IntegratedGradients(self.single)
        mean = self.background.mean(0, keepdim=True)
        samples = min(self.size.M, ROWS // STEPS)
        x = self.x[:samples]
        with torch.no_grad():
            base = self.single(mean)[0]
        return Peer(lambda: explainer.attribute(x, mean, target=0, n_steps=STEPS).numpy(), samples, base)

    def _gradients(self) -> Peer:
        explainer = shap.GradientExplainer(self.single, self.background)
        return Peer(lambda: explainer.shap_values(self.x[:1], rseed=0), 1, self.mean_output[:1])

    def additivity_error(self, values: Any, base: Tensor) -> float:
        """Return max |sum of attributions - (f(x) - base)| over what is explained."""
        sums = np.asarray(values).reshape(len(values), self.size.T * self.size.I, -1).sum(1)
        with torch.no_grad():
            expected = self.model(self.x[: len(values)])[:, : len(base)] - base
        return float(np.abs(sums - expected.numpy()).max())


def keras_model(model: Net, steps: int) -> Any:
    """Return the same model written by hand in TensorFlow, from the cells of the examples."""
    sys.path.insert(0, str(RESULTS.parent.parent / "examples"))
    import keras
    import tensorflow_cells
    from keras import ops

    rnn = model.rnn
    sequence = keras.Input((steps, rnn.input_size))
    zero = ops.zeros_like(sequence[:, 0, :1]) @ np.zeros((1, rnn.hidden_size), "float32")
    inputs = [sequence[:, t] for t in range(steps)]
    for layer in range(rnn.num_layers):
        directions = []
        for suffix in ("", "_reverse")[: 1 + rnn.bidirectional]:
            names = (f"{name}_l{layer}{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            weights = [getattr(rnn, name) for name in names]
            lstm = isinstance(rnn, nn.LSTM)
            step = tensorflow_cells.lstm_cell(*weights) if lstm else tensorflow_cells.gru_cell(*weights)
            state, outputs = (zero, zero) if lstm else (zero,), []
            for x in reversed(inputs) if suffix else inputs:
                new = step(x, *state)
                state = new if lstm else (new,)
                outputs.append(state[0])
            directions.append(outputs[::-1] if suffix else outputs)
        both = zip(*directions, strict=True)
        inputs = [ops.concatenate(each, -1) if len(each) > 1 else each[0] for each in both]
    # Keras walks the graph of all cells by recursion.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 100 * CELLS))
    return keras.Model([sequence], tensorflow_cells.dense(model.head.weight, model.head.bias)(inputs[-1]))
