"""The same explanations with each step of a loop explained by itself."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from passes.recurrent.recurrence import Recurrence
from rewriter import DeepExplainer
from rewriter.engine.linked_modules import linked_copy
from rewriter.explainer import target


def loops_in(model: nn.Module) -> int:
    return sum(isinstance(each, Recurrence) for each in model.modules())


def step_by_step(
    asked: Any, background: Tensor, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> DeepExplainer:
    with monkeypatch.context() as patch:
        patch.setattr(target, "linked_copy", lambda model, rolled, cut: linked_copy(model, cut=cut))
        return DeepExplainer(asked, background, **options)
