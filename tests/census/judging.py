"""What becomes of one model: its explanation is exact, is refused by name, or is at fault."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from passes.errors import RewriteError
from rewriter import DeepExplainer, decompose

# Of the largest output, or of all parts that it is split into.
TOLERANCE = 1e-9
_SAMPLES = 2


class Verdict(Enum):
    """The better ones first."""

    EXACT = "exact"
    REFUSED = "refused by name"
    OTHER_NAME = "refused by another name"
    WRONG = "wrong without a word"
    CRASH = "crash"


class Judged(NamedTuple):
    """A verdict, with what was said."""

    verdict: Verdict
    said: str = ""


class InCode(nn.Module):
    """A model whose code decides by the values, so that torch.fx cannot follow it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        if x.sum() > 1e300:
            return x[:, :2]
        return self.model(x)


def judged(model: Any, plain: nn.Module, x: Tensor, names: Iterable[str]) -> Judged:
    """Explain a model and look at the sums.

    Args:
        model: what is explained: a module, or a program of it.
        plain: computes the same.
        x: samples, then references.
        names: of the operation, of which an error has to name one.

    """
    samples, background = x[:_SAMPLES], x[_SAMPLES:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.no_grad():
                f, f0 = plain(samples.clone()).numpy(), plain(background.clone()).numpy()
            explainer = DeepExplainer(model, background, progress=False, compiled=False)
            values = explainer.shap_values(samples)
        except RewriteError as error:
            return Judged(_named(str(error), names), _short(str(error)))
        except Exception as error:
            return Judged(Verdict.CRASH, _short(f"{type(error).__name__}: {error}"))
    gap = abs(values.sum(1) - (f - f0.mean(0)))
    scale = abs(f).clip(1).max(0) + abs(values).sum(1)
    # In a narrower type multipliers have no more digits than it has.
    if not (gap <= max(TOLERANCE, getattr(plain, "rounding", 0.0)) * scale).all():
        return Judged(Verdict.WRONG, f"off by {(gap / scale).max():.1e}")
    return Judged(Verdict.EXACT)


def graph_of(model: nn.Module, x: Tensor) -> fx.GraphModule | None:
    """Return a model as plain lines of code, one for each call; None if torch.fx cannot follow it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph = fx.symbolic_trace(model)
            same = torch.equal(graph(x.clone()), model(x.clone()))
            return graph if same and not decompose(graph).report.islands else None
        except Exception:
            return None


def program_of(model: nn.Module, x: Tensor) -> Any:
    """Return a model as torch.export has it for any number of rows, None if it does not."""
    batch = torch.export.Dim("batch", min=1, max=100)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(model, (x[:_SAMPLES],), dynamic_shapes=({0: batch},))
    except Exception:
        return None


def _named(message: str, names: Iterable[str]) -> Verdict:
    known = {part for name in names for part in (name, name.rpartition(".")[2], name.replace(".", "_"))}
    found = any(re.search(rf"(?<![A-Za-z]){re.escape(each)}(?![A-Za-z])", message) for each in known)
    return Verdict.REFUSED if found else Verdict.OTHER_NAME


def _short(message: str) -> str:
    return " ".join(message.split())[:300]
