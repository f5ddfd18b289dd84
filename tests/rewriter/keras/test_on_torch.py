"""What on_torch.py claims of Keras on the torch backend, which only another process can have."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("keras", reason="Keras is not installed")
CLAIMS = [
    "becomes_one_graph_with_its_weights_and_stays_as_it_is",
    "explanations_follow_the_weights",
    "a_layer_of_the_users_runs_by_its_own_code",
    "a_users_replacement_comes_first",
    "a_model_of_the_users_class_is_a_graph_where_keras_can_follow_it",
    "a_layer_of_keras_is_explained",
    "several_inputs_are_explained_one_by_one",
    "exports_with_loops_and_any_length",
    "a_layer_by_itself_is_decomposed",
    "what_is_changed_later_is_followed",
    "what_is_not_followed_is_refused",
    "a_state_that_moves_is_followed_and_left_as_it_is",
    "diagnosis_names_layers_and_measures_stock_shap",
    "a_convolutional_lstm_is_that_many_lstms",
    "stacked_cells_are_explained_the_users_own_by_its_code",
    "half_precision_is_refused_by_layer",
]


_WITHOUT = "import runpy, sys; sys.modules['tensorflow'] = None"


@cache
def said() -> dict[str, str]:
    script = Path(__file__).with_name("on_torch.py")
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        # Whether TensorFlow is there or not: nothing there may need it.
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            f"{_WITHOUT}; runpy.run_path({str(script)!r}, run_name='__main__')",
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)


@pytest.mark.parametrize("claim", CLAIMS)
def test_claim_holds(claim: str) -> None:
    assert said()[claim] == "holds"


def test_all_claims_are_listed() -> None:
    assert list(said()) == CLAIMS
