"""A part of the census, and that what is written down is what it finds; ``make census`` takes all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.census.batched import inputs_of, models_of
from tests.census.entries import ENTRIES, findings, name_of, verdict_of
from tests.census.judging import InCode, Verdict, judged
from tests.census.samples import drawn

ROOT = Path(__file__).parent.parent.parent
RECORDED = json.loads((ROOT / "benchmarks/results/census.json").read_text())
#: What was once wrong without a word, or crashed, and a few of each family.
CHOSEN = [
    *("copysign", "float_power", "__rpow__", "__rmod__", "nn.functional.softmin", "remainder", "fmod"),
    *("sort", "topk", "median", "quantile", "cummax", "logcumsumexp", "where", "clamp", "xlogy", "ldexp"),
    *("scatter_reduce amax", "index_reduce mean", "_segment_reduce lengths", "linalg.solve", "linalg.det"),
    *("nn.functional.mse_loss", "nn.functional.cross_entropy", "nn.functional.kl_div"),
]


def entry_named(name: str) -> Any:
    return next(each for each in ENTRIES if name_of(each) == name)


@pytest.mark.parametrize("name", CHOSEN)
def test_is_exact(name: str) -> None:
    found = list(findings(entry_named(name), 1, forms=False, exported=False))
    assert found
    assert verdict_of(found) is Verdict.EXACT, [each for each in found if each.verdict is not Verdict.EXACT]


def test_nothing_recorded_is_wrong_without_a_word() -> None:
    found = {each["verdict"] for each in RECORDED["records"]}
    assert Verdict.WRONG.value not in found


class Silent(nn.Module):
    """Explains as something else than it computes, when it is compared."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2] * 2


def test_a_wrong_explanation_is_seen() -> None:
    x = torch.randn(4, 2, dtype=torch.float64)
    plain = nn.Identity()
    assert judged(Silent(), plain, x, ["mul"]).verdict is Verdict.WRONG
    assert judged(nn.Identity(), plain, x, ["mul"]).verdict is Verdict.EXACT


class Cut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()[:, :2] * 2


def test_a_refusal_is_told_by_its_name() -> None:
    x = torch.randn(4, 2, dtype=torch.float64)
    assert judged(InCode(Cut()), Cut(), x, ["detach"]).verdict is Verdict.REFUSED
    assert judged(InCode(Cut()), Cut(), x, ["sort"]).verdict is Verdict.OTHER_NAME


def test_models_compute_what_the_operation_computes_for_each_row() -> None:
    for name in ("sort", "linalg.inv", "nn.functional.conv1d"):
        sample = next(drawn(entry_named(name), 1))
        model = next(models_of(sample))
        x = inputs_of(sample)
        assert not torch.equal(x[0], x[1])
        alone = torch.cat([model(x[k : k + 1]) for k in range(len(x))])
        torch.testing.assert_close(model(x), alone, rtol=1e-12, atol=1e-12)
