"""Why does a GRU forecast that air travel will fall this month?

Run it with ``python examples/03_gru_forecaster.py``. The data are the monthly airline passengers of
1949 to 1960, which aeon ships. The GRU sees the growth of 12 months and forecasts that of the next.
"""

from __future__ import annotations

import warnings

import numpy as np
import shap
import torch
from aeon.datasets import load_airline
from torch import Tensor, nn

from rewriter import decompose

WINDOW = 12
MONTHS = [f"{year}-{month:02d}" for year in range(1949, 1961) for month in range(1, 13)]


class Forecaster(nn.Module):
    """A GRU over the months, and a Linear on its last hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 16, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, months: Tensor) -> Tensor:
        """Return the next month (B, 1) for windows (B, 12, 1)."""
        output, _ = self.gru(months)
        return self.head(output[:, -1])


def train(model: nn.Module, windows: Tensor, targets: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.3)
    for _ in range(200):
        loss = nn.functional.mse_loss(model(windows), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def additivity_error(model: nn.Module, background: Tensor, x: Tensor, values: np.ndarray) -> float:
    with torch.no_grad():
        explained = (model(x) - model(background).mean(0)).numpy()
    return float(np.abs(values.sum((1, 2)) - explained).max())


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a model as small as this one is slower with more
    # In tenths, so that the numbers are of the order of 1.
    growth = 10 * torch.tensor(np.diff(np.log(load_airline())), dtype=torch.float32)
    windows = growth[:-1].unfold(0, WINDOW, 1).unsqueeze(2)
    targets = growth[WINDOW:].unsqueeze(1)
    background, x, seen = windows[:-12], windows[-12:], len(windows) - 12
    model = Forecaster()
    train(model, background, targets[:seen])
    with torch.no_grad():
        forecasts, average = 10 * model(x), 10 * model(background).mean()
    grew = 10 * targets[seen:]
    error, naive = (forecasts - grew).abs().mean(), (10 * x[:, 0] - grew).abs().mean()
    print(f"mean error over 1960, which it has not seen: {error:.1f} points of growth")
    print(f"taking the growth of the same month of 1959: {naive:.1f} points")

    with warnings.catch_warnings():
        # shap warns that it does not know nn.GRU, and would raise because the values do not add up.
        warnings.simplefilter("ignore")
        wrong = shap.DeepExplainer(model, background).shap_values(x, check_additivity=False)
    decomposed = decompose(model)
    values = shap.DeepExplainer(decomposed, background).shap_values(x)
    print(f"additivity error as it is:   {additivity_error(model, background, x, wrong):.2e}")
    print(f"additivity error decomposed: {additivity_error(decomposed, background, x, values):.2e}")

    lowest = int(forecasts.argmin())
    shares = 10 * values[lowest, :, 0, 0]
    forecast, was = forecasts[lowest, 0], grew[lowest, 0]
    print(f"\nforecast for {MONTHS[lowest - 12]}: {forecast:+.1f} % (it was {was:+.1f} %)")
    print(f"{average:+6.1f}  the average forecast")
    for t, share in enumerate(shares):
        month = f"{MONTHS[lowest - 24 + t]} grew by {10 * x[lowest, t, 0]:+.1f} %"
        top = "  <- top month" if t == np.abs(shares).argmax() else ""
        print(f"{share:+6.1f}  because {month}{top}")
    print(f"{average + shares.sum():+6.1f}  their sum: the forecast")


if __name__ == "__main__":
    main()
