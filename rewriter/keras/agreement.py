"""Whether a torch module computes what the Keras model computes that it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from rewriter.keras.origin import run_model
from rewriter.keras.weights import tensor_of

# Of the largest output. Both round in their own order; another function differs by far more.
_CLOSE = 1e-4
# In the place of sizes that the model does not fix.
_SOME = 5


def check_agreement(model: Any, made: nn.Module, graph: Any = None) -> None:
    """Run both on the same random numbers.

    Args:
        model: of Keras.
        made: of it, in torch.
        graph: what the module was made of, if the model has no graph itself.

    Raises:
        RewriteError: if their outputs differ.

    """
    inputs = random_inputs(graph or model)
    expected = run_model(model, inputs, graph)
    with torch.no_grad():
        got = made(*inputs)
    for k, (a, b) in enumerate(zip(_leaves(expected), _leaves(got), strict=True)):
        # Random numbers may be none that the model can take.
        same = a.shape == b.shape and torch.equal(a.isfinite(), b.isfinite())
        finite = a.isfinite() if same else torch.zeros(0)
        scale = max(float(a[finite].abs().amax()), 1e-6) if same and finite.any() else 1.0
        gaps = (a - b).abs()[finite] if same else torch.full((1,), torch.inf)
        worst = float(gaps.max()) if gaps.numel() else 0.0
        if not worst <= _CLOSE * scale:
            raise RewriteError(
                f"the torch module of {model.name} computes something else than the Keras model: output {k} "
                f"is of shape {tuple(b.shape)} and off by {worst:.2g}, expected {tuple(a.shape)}; this is a "
                "fault of rewriter.keras, or a layer was changed after it was built"
            )


def random_inputs(model: Any) -> list[Tensor]:
    """Return two rows for each input of a model: normal numbers, or indices that its embeddings have."""
    rng = np.random.default_rng(0)
    sizes = [each.input_dim for each in _layers(model) if type(each).__name__ == "Embedding"]
    found = []
    for each in model.inputs:
        shape = [2 if k == 0 and size is None else size or _SOME for k, size in enumerate(each.shape)]
        whole = sizes or "int" in str(each.dtype)
        drawn = rng.integers(0, min(sizes, default=2), shape) if whole else rng.standard_normal(shape)
        found.append(torch.from_numpy(np.asarray(drawn).astype(str(each.dtype))))
    return found


def _layers(model: Any) -> Iterator[Any]:
    for each in model.layers:
        yield from _layers(each) if hasattr(each, "layers") else [each]


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each)
    else:
        yield tensor_of(value).detach()
