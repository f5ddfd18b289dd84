"""Layers of a model are explained with its loops rolled, unless they are a part of one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rewriter import DeepExplainer, RewriteError
from tests.rewriter.engine.loops.models import Once, data
from tests.rewriter.engine.loops.step_by_step import loops_in, step_by_step


@pytest.mark.parametrize(
    ("name", "to_input"),
    [("before", True), ("before", False), ("inside", True), ("head", True), ("", True)],
)
def test_a_layer_of_a_model_with_a_loop(name: str, to_input: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Once().double().eval()
    x, background = data()
    asked: Any = (model, model.get_submodule(name))
    found = DeepExplainer(asked, background, attribute_to_layer_input=to_input)
    # Before the step that calls a layer of its own, and behind it.
    assert loops_in(found._target.model) == 2
    plain = step_by_step(asked, background, monkeypatch, attribute_to_layer_input=to_input)
    assert not loops_in(plain._target.model)
    expected = plain.shap_values(x)
    np.testing.assert_allclose(found.shap_values(x), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_what_a_layer_behind_a_loop_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Once().double().eval()
    x, background = data()
    found = DeepExplainer((model, model.before), background, output=(model.inside, (1,)))
    assert loops_in(found._target.model)
    plain = step_by_step((model, model.before), background, monkeypatch, output=(model.inside, (1,)))
    assert not loops_in(plain._target.model)
    expected = plain.shap_values(x)
    np.testing.assert_allclose(found.shap_values(x), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_a_layer_of_all_steps_is_refused() -> None:
    model = Once().double().eval()
    with pytest.raises(RewriteError, match="more than once"):
        DeepExplainer((model, model.x), data()[1])
