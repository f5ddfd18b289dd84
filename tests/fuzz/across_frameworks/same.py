"""Whether outputs and SHAP values of one model are the same in every framework."""

from __future__ import annotations

import importlib
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import shap
import torch
from torch import Tensor, nn

from passes.errors import DeclinedError
from rewriter import DeepExplainer
from rewriter.keras import decompose, load, to_keras, to_torch
from tests.fuzz.across_frameworks.by_hand import by_hand
from tests.fuzz.judging import HELD, Violation, judged
from tests.fuzz.programs import Drawn
from tests.support.keras_models import outputs

sys.path.append(str(Path(__file__).parents[3] / "examples"))
sequence_model = importlib.import_module("tensorflow_cells").sequence_model

# Of each element, in float64: shap takes the derivative where an input differs by less than 1e-6. Of the
# largest, for elements that are differences of such.
_RELATIVE, _OF_THE_LARGEST = 1e-5, 1e-9
# Where all is less, shap leaves shares of products out: those of operands that differ by less than 1e-7.
_TOO_SMALL = 1e-5
_RECURRENT = ("LSTM", "GRU", "SimpleRNN", "Bidirectional")


class _Torch(nn.Module):
    """Torch's layers with the weights of Keras' in the place of those.

    Args:
        model: of Keras; each of its recurrent layers is one that torch has.

    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.sequences: list[bool] = []
        for k, layer in enumerate(each for each in model.layers if type(each).__name__ in _RECURRENT):
            self.add_module(f"recurrent{k}", to_torch(layer))
            self.sequences.append(layer.return_sequences)
        self.head = to_torch(model.layers[-1])

    def forward(self, x: Tensor) -> Tensor:
        for k, sequences in enumerate(self.sequences):
            x, state = self.get_submodule(f"recurrent{k}")(x)
            h = state[0] if isinstance(state, tuple) else state
            if not sequences:
                x = h.transpose(0, 1).flatten(1)
        return self.head(x.flatten(1))


def _in_torch(model: Any, masked: list[int]) -> _Torch | None:
    try:
        return None if masked else _Torch(model)
    except DeclinedError:
        return None


def _loaded(model: Any) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        with warnings.catch_warnings():
            # Keras' own, on TensorFlow, when it saves.
            warnings.simplefilter("ignore")
            model.save(f"{folder}/model.keras")
        return load(f"{folder}/model.keras")


def _stock(model: Any, background: Any, x: Any) -> Any:
    logging.getLogger("shap").setLevel(logging.ERROR)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # TensorFlow's, numpy's and shap's, of each other.
        warnings.simplefilter("ignore")
        return shap.DeepExplainer(model, background).shap_values(x, check_additivity=False)


def _ours(model: nn.Module, background: Any, x: Any) -> Any:
    explainer = DeepExplainer(model, torch.from_numpy(background), progress=False)
    return explainer.shap_values(torch.from_numpy(x))


def _compare(what: str, got: Any, expected: Any) -> None:
    allowed = _RELATIVE * np.abs(expected) + _OF_THE_LARGEST * np.abs(expected).max()
    if got.shape != expected.shape or not (np.abs(got - expected) <= allowed).all():
        raise Violation(f"{what} differ", f"{got}, expected {expected}")


def _there_and_back(model: nn.Module) -> None:
    for name, layer in model.named_children():
        if not isinstance(layer, nn.RNNBase):
            continue
        theirs = to_keras(layer)
        again = to_keras(to_torch(theirs))
        for a, b in zip(again.get_weights(), theirs.get_weights(), strict=True):
            if not np.array_equal(a, b):
                raise Violation("there and back is another layer", name)


def frameworks_agree(example: Drawn) -> str:
    """Judge a Keras model: outputs and SHAP values, by hand, decomposed, from its file, in torch."""
    space = example.build()
    model, x, background, masked = space.model, space.x, space.background, space.masked
    manual = by_hand(model, masked)
    [expected] = outputs(model, x)
    _compare("outputs of the cell by hand", outputs(manual, x)[0], expected)
    truth = _stock(manual, background, x)
    if np.abs(truth).max() < _TOO_SMALL:
        return "too small for shap"
    with judged("rewriter.keras.load"):
        loaded = _loaded(model)
        _compare("outputs of the file", loaded(torch.from_numpy(x)).detach().numpy(), expected)
        _compare("values of the file", _ours(loaded, background, x), truth)
    if not masked:
        with judged("rewriter.keras.decompose"):
            written_out = decompose(model)
            _compare("outputs of the decomposed model", outputs(written_out, x)[0], expected)
            _compare("values of the decomposed model", _stock(written_out, background, x), truth)
    with judged("rewriter.keras.to_torch"):
        torchs = _in_torch(model, masked)
        if torchs is not None:
            _compare("outputs of torch's layers", torchs(torch.from_numpy(x)).detach().numpy(), expected)
            _compare("values of torch's layers", _ours(torchs, background, x), truth)
            _there_and_back(torchs)
            layer = torchs.get_submodule("recurrent0")
            plain = isinstance(layer, nn.LSTM | nn.GRU) and not layer.bidirectional and layer.bias
            if plain and torchs.sequences == [False]:
                manual = sequence_model(layer, torchs.head, x.shape[1])
                _compare("values of the example's cell by hand", _stock(manual, background, x), truth)
    return HELD if torchs is None else "held, in torch's layers too"
