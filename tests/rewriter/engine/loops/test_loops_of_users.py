"""Loops of users' own are explained as recurrences, with the values of each step explained by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import fx, nn

from rewriter import DeepExplainer
from rewriter.compiler.decompose import lowered
from rewriter.engine.linked_modules import linked_copy
from tests.rewriter.engine.loops.apart import APART
from tests.rewriter.engine.loops.models import ROLLED, Peephole, data
from tests.rewriter.engine.loops.step_by_step import loops_in, step_by_step

LOOPS = ROLLED | APART


def graph_of(model: nn.Module) -> list[str]:
    assert isinstance(model, fx.GraphModule)
    return [node.format_node() for node in model.graph.nodes]


@pytest.mark.parametrize("name", LOOPS)
def test_values_are_those_of_each_step_by_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, loops = LOOPS[name]
    model = build().double().eval()
    x, background = data()
    explainer = DeepExplainer(model, background)
    assert loops_in(explainer._target.model) == loops
    plain = step_by_step(model, background, monkeypatch)
    assert not loops_in(plain._target.model)
    got, expected = explainer.shap_values(x), plain.shap_values(x)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("name", LOOPS)
def test_a_rolled_model_computes_the_same(name: str) -> None:
    build, loops = LOOPS[name]
    model = build().double().eval()
    x, _ = data()
    rewritten = lowered(model, example=[x])
    before = graph_of(rewritten)
    rolled = linked_copy(rewritten, rolled=True)
    assert loops_in(rolled) == loops
    # Linears are multiplied for all steps at once, which may round otherwise.
    torch.testing.assert_close(rolled(x), model(x), rtol=1e-13, atol=1e-14)
    assert graph_of(rewritten) == before


def test_weights_that_are_written_to_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Peephole().double().eval()
    x, background = data()
    explainer = DeepExplainer(model, background)
    with torch.no_grad():
        for each in model.parameters():
            each.mul_(1.5)
    expected = step_by_step(model, background, monkeypatch).shap_values(x)
    got = explainer.shap_values(x, check_additivity=False)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
