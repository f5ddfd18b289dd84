"""Threads, explanations in threads, and faults of our own."""

from __future__ import annotations

import cProfile
import gc
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from passes.errors import DeclinedError, PassError
from rewriter import RewriteError, decompose, diagnose, unroll
from tests.support.models import gallery
from tests.support.models.soundness import Base, Plain
from tests.support.watching import snapshot


def test_what_is_decomposed_is_not_passed_off_as_something_else() -> None:
    fused = decompose(Plain())
    with pytest.raises(RewriteError, match="decomposed already, with fused gates"):
        decompose(fused, gates="split")
    with pytest.raises(RewriteError, match="unrolled for sequences of 5 steps already, asked for 7"):
        unroll(unroll(fused, length=5), length=7)


def test_unroll_declines_as_decompose_does() -> None:
    class Own(nn.GRU):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:  # type: ignore[override]
            return input

    with pytest.raises(DeclinedError):
        unroll(nn.Sequential(Own(3, 4)), length=3)


def test_threads_and_profilers() -> None:
    call = nn.Module.__call__
    failures: list[BaseException] = []

    # Making a model draws random numbers, which another thread would take for its model's.
    models = [Plain() for _ in range(4)]

    def work(model: nn.Module) -> None:
        try:
            for _ in range(3):
                assert decompose(model, torch.zeros(1, 3, 3)).report.islands == {}
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert nn.Module.__call__ is call
    assert gc.isenabled()

    profile = cProfile.Profile()
    profile.enable()
    decompose(Plain())
    sorted([3, 1], key=work_after)
    profile.disable()
    assert any("work_after" in str(entry.code) for entry in profile.getstats())


def work_after(value: int) -> int:
    return -value


class Counts(Base):
    """Counts in a buffer and in a list, also while it is explained."""

    def __init__(self) -> None:
        super().__init__()
        self.n: Tensor
        self.register_buffer("n", torch.zeros(()))
        self.log: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.n.add_(1)
        self.log.append(1)
        return self.g(x)[0][:, -1]


def test_explanation_undoes_buffers_and_lists() -> None:
    import shap

    model = Counts()
    rewritten = decompose(model)
    before = snapshot(rewritten)
    shap.DeepExplainer(rewritten, torch.randn(3, 4, 3)).shap_values(torch.randn(2, 4, 3))
    assert rewritten.n == 0
    assert rewritten.log == []
    assert snapshot(rewritten)[1:] == before[1:]


def test_explanations_of_one_model_in_several_threads() -> None:
    import shap

    rewritten = decompose(nn.Sequential(Plain(), nn.Flatten(), nn.Linear(12, 2)))
    explainer = shap.DeepExplainer(rewritten, torch.randn(3, 4, 3))
    x = torch.randn(2, 4, 3)
    expected = explainer.shap_values(x)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(explainer.shap_values(x))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for each in results:
        np.testing.assert_allclose(each, expected, atol=1e-7)
    assert not any(module._forward_hooks or module._backward_hooks for module in rewritten.modules())


@pytest.mark.filterwarnings("ignore:.*does not require grad")
def test_differing_lengths_are_said_to_break_additivity() -> None:
    import shap

    from tests.support.models.recurrent_models import Packs

    x, background = torch.randn(2, 6, 3), torch.randn(3, 6, 3)
    x[:, 4:] = 0
    explainer = shap.DeepExplainer(decompose(Packs()), background)
    with pytest.warns(UserWarning, match=r"packing\.rnn: a sample and its reference differ in length"):
        explainer.shap_values(x, check_additivity=False)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_autocast_gives_the_dtypes_of_torch(kind: str) -> None:
    layer = getattr(nn, kind)(3, 4)
    x = torch.randn(2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for given in (False, True):
            h = torch.zeros(*((1, 4) if "Cell" not in kind else (2, 4)))
            state = ((h, h) if "LSTM" in kind else h) if given else None
            expected, got = layer(x, state), decompose(layer)(x, state)
            flat = [[t.dtype for t in torch.utils._pytree.tree_leaves(v)] for v in (expected, got)]
            assert flat[0] == flat[1]


class Faulty(nn.Module):
    """Meets, when it is traced, what only a fault of a pass could raise."""

    def forward(self, x: Tensor) -> Tensor:
        raise PassError("a fault of ours")


def test_a_fault_of_ours_is_not_taken_for_the_users_code() -> None:
    with pytest.raises(PassError, match="a fault of ours"):
        decompose(Faulty())


def test_a_fault_of_ours_is_not_taken_for_a_model_that_cannot_be_rewritten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def faulty(*_: object, **__: object) -> None:
        raise PassError("a fault of ours")

    monkeypatch.setattr("rewriter.diagnosis.advice.decompose", faulty)
    with pytest.raises(PassError, match="a fault of ours"):
        diagnose(gallery.ReadsLength(), torch.randn(2, 4, 3), torch.randn(3, 4, 3))
