"""How far attributions of whole models are from adding up: stock shap as is and decomposed, and ours.

Run with: python benchmarks/whole_model.py
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any, NamedTuple

import numpy as np
import problems.whole_models as models
import problems.whole_models_more as more
import torch
from timing import arguments, publish
from torch import Tensor, nn

import rewriter

SAMPLES, REFERENCES = 3, 5


class Case(NamedTuple):
    """One model of the gallery.

    Args:
        model: its class.
        inputs: makes a number of rows of its inputs.
        layer: of the decomposed model, whose input stock shap explains where the model takes integers.
        context: which input is read beside what is explained: lengths.

    """

    model: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    layer: str | None = None
    context: int | None = None


def sequences(*shapes: tuple[int, ...]) -> Callable[[int], tuple[Tensor, ...]]:
    """Return what draws inputs of these shapes."""
    return lambda rows: tuple(torch.randn(rows, *shape) for shape in shapes)


def texts(rows: int) -> tuple[Tensor, ...]:
    """Draw padded texts and their lengths."""
    lengths = torch.randint(2, models.STEPS + 1, (rows,))
    lengths[0] = models.STEPS
    tokens = torch.randint(1, models.WORDS, (rows, models.STEPS))
    return tokens * (torch.arange(models.STEPS) < lengths[:, None]), lengths


SERIES = sequences((models.STEPS, models.FEATURES))
CASES = {
    "LSTM + additive attention": Case(models.AdditiveAttention, SERIES),
    "LSTM + self-attention": Case(models.SelfAttention, SERIES),
    "CNN-LSTM": Case(models.CNNLSTM, SERIES),
    "LSTM-FCN": Case(models.LSTMFCN, SERIES),
    "sequence to sequence": Case(
        models.Seq2Seq, sequences((models.STEPS, models.FEATURES), (4, models.OUTPUTS))
    ),
    "temporal fusion gating": Case(models.TemporalFusion, SERIES),
    "encoder-decoder GRU": Case(models.EncoderDecoderGRU, SERIES),
    "bidirectional, max over time": Case(models.MaxOverTime, SERIES),
    "embedding + packed LSTM": Case(models.TextClassifier, texts, "embedding_output", 1),
    "residual LSTM, LayerNorm": Case(models.ResidualLSTM, SERIES),
    "convolution + GRU, audio": Case(models.AudioTagger, sequences((1, 2 * models.FEATURES, models.STEPS))),
    "hierarchical attention": Case(more.HierarchicalAttention, sequences((3, 4, models.FEATURES))),
    "siamese": Case(more.Siamese, sequences(*[(models.STEPS, models.FEATURES)] * 2)),
    "policy and value": Case(more.ActorCritic, SERIES),
    "probabilistic forecaster": Case(more.Forecaster, SERIES),
    "transformer over LSTM": Case(more.TransformerOverLSTM, SERIES),
    "time first": Case(more.TimeFirst, SERIES),
    "GRU with decay": Case(more.Decay, SERIES),
    "ConvLSTM": Case(more.ConvLSTM, SERIES),
    "gated convolution": Case(more.GatedConvolution, SERIES),
}


class Problem:
    """A model of the gallery with samples and references.

    Args:
        case: which one.
        dtype: of parameters and inputs.

    """

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.case = case
        self.model = case.model().eval().to(dtype)
        drawn = (case.inputs(SAMPLES), case.inputs(REFERENCES))
        self.x, self.background = (
            [each.to(dtype) if each.is_floating_point() else each for each in inputs] for inputs in drawn
        )

    def ours(self) -> Any:
        """Explain with our own engine."""
        explainer = rewriter.DeepExplainer(self.model, self.background, progress=False)
        return explainer.shap_values(self.x, check_additivity=False)

    def stock(self, model: nn.Module) -> Any:
        """Explain with stock shap."""
        import shap

        explained = model if self.case.layer is None else (model, model.get_submodule(self.case.layer))
        if self.case.context is None:
            return shap.DeepExplainer(explained, self.background).shap_values(self.x, check_additivity=False)
        # Stock shap knows no contexts: each sample gets a background of its own length.
        return np.concatenate(
            [
                shap.DeepExplainer(explained, self.read(i)).shap_values(
                    [each[i : i + 1] for each in self.x], check_additivity=False
                )[0]
                for i in range(SAMPLES)
            ]
        )

    def read(self, i: int) -> list[Tensor]:
        """Return the background as it is read in the context of one sample."""
        return [
            self.x[k][i].expand(REFERENCES) if k == self.case.context else each
            for k, each in enumerate(self.background)
        ]

    def expected(self, values: list[Any]) -> tuple[Any, float]:
        """Return what the attributions must sum to, and the size of the outputs."""
        with torch.no_grad():
            f = self.model(*self.x).double().numpy()
            if len(values) == 1 and self.case.context is not None:
                f0 = np.stack([self.model(*self.read(i)).double().numpy().mean(0) for i in range(SAMPLES)])
            else:
                f0 = self.model(*self.background).double().numpy().mean(0)
        return f - f0, max(1.0, float(np.abs(f).max()))

    def error(self, explain: Callable[[], Any]) -> float:
        """Return max |sum of attributions - (f(x) - mean f(background))| over max(1, max |f(x)|)."""
        try:
            with redirect_stderr(io.StringIO()):
                values = explain()
        except Exception as error:
            print(f"{type(error).__name__}: {str(error)[:300]}")
            return float("nan")
        parts = values if isinstance(values, list) else [values]
        expected, size = self.expected(parts)
        total = sum(np.asarray(each).sum(tuple(range(1, each.ndim - 1))) for each in parts)
        return float(np.abs(total - expected).max()) / size


def errors(case: Case) -> dict[str, float]:
    """Return the additivity error of each explainer on one model."""
    # Stock shap leaves its hooks on a model that it fails on, so that model is nobody else's.
    as_is, single, double = (Problem(case, each) for each in (torch.float32, torch.float32, torch.float64))
    return {
        "stock, as it is": as_is.error(lambda: as_is.stock(as_is.model)),
        "stock, decomposed": single.error(lambda: single.stock(rewriter.decompose(single.model))),
        "float64": double.error(lambda: double.stock(rewriter.decompose(double.model))),
        "ours": single.error(single.ours),
        "ours, float64": double.error(double.ours),
    }


def shown(error: float) -> str:
    """Return an error as text; there is none where the explainer failed."""
    return "fails" if np.isnan(error) else f"{error:.1e}"


def main() -> None:
    """Explain every model of the gallery."""
    options = arguments("Additivity of attributions for whole models.")
    # What shap says of the models as they are is the reason for this project.
    warnings.simplefilter("ignore")
    names = list(CASES)[:2] if options.quick else list(CASES)
    records = [{"model": name} | errors(CASES[name]) for name in names]
    header = tuple(records[0])
    rows = [(each["model"], *(shown(each[key]) for key in header[1:])) for each in records]
    worst = ", ".join(f"{key} {np.nanmax([each[key] for each in records]):.1e}" for key in header[1:])
    notes = [
        "Worst |sum of attributions - (f(x) - mean f(background))| / max(1, max |f(x)|).",
        f"worst: {worst}",
    ]
    publish("whole_model", options, header, rows, notes, records)


if __name__ == "__main__":
    main()
