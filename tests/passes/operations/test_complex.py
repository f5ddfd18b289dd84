"""Complex numbers between real inputs and outputs, as in spectra and correlations by Fourier transforms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import shap
import torch
from torch import Tensor, nn

from rewriter import DeepExplainer, RewriteError, decompose

STEPS = 5


class Two(nn.Module):
    """A function of two linear maps of the input."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.a(x), self.b(x)).flatten(1)


def _transformed(a: Tensor) -> Tensor:
    return torch.fft.rfft(a, dim=1)


def _back(z: Tensor) -> Tensor:
    return torch.fft.irfft(z, n=STEPS, dim=1)


def _shifted(b: Tensor) -> Tensor:
    """Every cyclic shift of ``b``, (B, shift, STEPS, channels)."""
    return torch.stack([b.roll(k, 1) for k in range(STEPS)], 1)


# With complex numbers, and the same without: both are linear in each of two factors.
SAME: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "convolution": (
        lambda a, b: _back(_transformed(a) * _transformed(b)),
        lambda a, b: torch.einsum("bsc,btsc->btc", a, _shifted(b.flip(1).roll(1, 1))),
    ),
    "correlation": (
        lambda a, b: _back(_transformed(a) * _transformed(b).conj()),
        lambda a, b: torch.einsum("bsc,btsc->btc", a, _shifted(b)),
    ),
    "contraction": (
        lambda a, b: _back(torch.einsum("btc,btd->btcd", _transformed(a), _transformed(b).conj())),
        lambda a, b: torch.einsum("bsc,btsd->btcd", a, _shifted(b)),
    ),
    "matrix product": (
        lambda a, b: (torch.complex(a, b) @ torch.complex(b, a).mT).imag,
        lambda a, b: a @ a.mT + b @ b.mT,
    ),
    "real times complex": (
        lambda a, b: (a * torch.complex(b, 2 * b)).imag,
        lambda a, b: 2 * a * b,
    ),
    "magnitude": (
        lambda a, b: torch.complex(a, b).abs(),
        lambda a, b: torch.linalg.vector_norm(torch.stack([a, b]), dim=0),
    ),
    "magnitude of what is imaginary": (
        lambda a, b: torch.complex(torch.ones_like(a), a).abs(),
        lambda a, b: torch.linalg.vector_norm(torch.stack([torch.ones_like(a), a]), dim=0),
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_attributions_are_those_of_the_same_model_without_complex_numbers(case: str) -> None:
    model, real = (Two(function).double() for function in SAME[case])
    real.load_state_dict(model.state_dict())
    x, background = (torch.randn(n, STEPS, 3, dtype=torch.float64) for n in (3, 4))
    # The same function, up to rounding of a few hundred sums.
    assert torch.allclose(model(x), real(x), rtol=0, atol=1e-12)
    expected = DeepExplainer(real, background).shap_values(x)
    for explainer in (DeepExplainer(model, background), shap.DeepExplainer(decompose(model), background)):
        got = explainer.shap_values(x, check_additivity=False)
        assert np.abs(got - expected).max() < 1e-12


def test_what_has_no_rule_for_complex_numbers_is_named() -> None:
    model = Two(lambda a, b: torch.complex(a, b).exp().real).double()
    x, background = (torch.randn(n, STEPS, 3, dtype=torch.float64) for n in (3, 4))
    for explainer in (DeepExplainer(model, background), shap.DeepExplainer(decompose(model), background)):
        with pytest.raises(RewriteError, match="exp has no rule for complex numbers"):
            explainer.shap_values(x, check_additivity=False)
