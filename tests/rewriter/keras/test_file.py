"""Files of Keras, and what is said where Keras is not there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from passes.errors import RewriteError
from rewriter.command_line.models import load_model
from rewriter.keras import load, to_keras
from tests.support.keras_models import keras, outputs, rows, sequential

L = keras.layers
# Keras' own, on TensorFlow, when it saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_a_file_is_enough(tmp_path: Path) -> None:
    model = sequential(L.Bidirectional(L.LSTM(4, return_sequences=True)), L.GRU(3), L.Dense(2, "softmax"))
    model.save(tmp_path / "model.keras")
    x = rows(3, 7, 3)
    [expected] = outputs(model, x)
    got = load(tmp_path / "model.keras")(torch.from_numpy(x))
    assert np.allclose(got.detach(), expected, atol=1e-6)


def test_parts_of_tensors_are_taken_as_they_were_before_they_were_saved(tmp_path: Path) -> None:
    """JSON has no tuples: a key of several dimensions comes back as a list, which torch takes for indices."""
    x = keras.Input((7, 3))
    h = L.GRU(4, return_sequences=True)(x)
    model = keras.Model(x, [h[:, -1], h[:, 1:6:2, 0], h[..., 2], L.Dense(2)(h[:, None, 3])])
    model.save(tmp_path / "model.keras")
    given = rows(3, 7, 3)
    got = load(tmp_path / "model.keras")(torch.from_numpy(given))
    for ours, theirs in zip(got, outputs(model, given), strict=True):
        assert np.allclose(ours.detach(), theirs, atol=1e-6)


def test_the_command_line_reads_it(tmp_path: Path) -> None:
    model = sequential(L.LSTM(4), L.Dense(2))
    model.save(tmp_path / "model.keras")
    x = rows(3, 7, 3)
    named = load_model(str(tmp_path / "model.keras"))
    assert np.allclose(named.model(torch.from_numpy(x)).detach(), outputs(model, x)[0], atol=1e-6)
    (tmp_path / "text.keras").write_text("text")
    with pytest.raises(RewriteError, match=r"text\.keras: Keras cannot read it"):
        load_model(str(tmp_path / "text.keras"))


def test_code_in_a_file_is_refused_unless_it_is_trusted(tmp_path: Path) -> None:
    path = tmp_path / "lambda.keras"
    keras.Sequential([keras.Input((3,)), L.Lambda(lambda x: 2 * x, output_shape=(3,))]).save(path)
    with pytest.raises(RewriteError, match=r"holds code, that of a Lambda layer.*trusted=True"):
        load(path)
    # Then what it does is not known all the same.
    with pytest.raises(RewriteError, match="Lambda is a layer that Keras has, but that is not known here"):
        load(path, trusted=True)


def test_what_is_no_file_of_keras_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RewriteError, match=r"missing\.keras: no such file"):
        load(tmp_path / "missing.keras")
    (tmp_path / "text.keras").write_text("text")
    with pytest.raises(RewriteError, match=r"text\.keras: Keras cannot read it"):
        load(tmp_path / "text.keras")


class Unknown(keras.Layer):  # type: ignore[misc]  # Keras is Any
    def call(self, x: Any) -> Any:
        return x


def test_what_a_file_needs_of_the_users_is_named(tmp_path: Path) -> None:
    sequential(Unknown(name="mine"), L.LSTM(2)).save(tmp_path / "model.keras")
    with pytest.raises(RewriteError, match=r"it names Unknown, .*pass custom_objects=\{'Unknown': Unknown\}"):
        load(tmp_path / "model.keras")
    with pytest.raises(RewriteError, match=r"mine \(Unknown\): Unknown is a class of the user's"):
        load(tmp_path / "model.keras", custom_objects={"Unknown": Unknown})
    with pytest.raises(RewriteError, match=r"expected the path of a \.keras file, got int"):
        load(3)  # type: ignore[arg-type]  # that is what is tested


@pytest.mark.filterwarnings("ignore")  # HDF5 is an old format for Keras
def test_code_in_an_old_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    sequential(L.Lambda(lambda x: 2 * x, output_shape=(7, 3)), L.LSTM(2)).save(path)
    with pytest.raises(RewriteError, match=r"holds code, that of a Lambda layer"):
        load(path)


def test_says_how_to_get_keras(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    (tmp_path / "model.keras").write_text("text")
    with pytest.raises(RewriteError, match=r"pip install 'rnn-rewriter\[keras\]'"):
        load(tmp_path / "model.keras")
    with pytest.raises(RewriteError, match=r"Keras cannot be imported"):
        to_keras(torch.nn.GRU(2, 1))


def test_old_keras_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras, "__version__", "2.15.0")
    with pytest.raises(RewriteError, match=r"Keras 2\.15\.0 is installed, expected Keras 3"):
        to_keras(torch.nn.GRU(2, 1))
