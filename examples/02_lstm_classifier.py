"""Which rows of a handwritten digit made an LSTM call it what it called it?

Run it with ``python examples/02_lstm_classifier.py``. The digits are those of scikit-learn: 8 rows of
8 pixels, which the LSTM reads from top to bottom as 8 time steps.
"""

from __future__ import annotations

import warnings

import numpy as np
import shap
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from rewriter import decompose


class DigitClassifier(nn.Module):
    """An LSTM over the rows of an image, and a Linear on its last hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 32, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, rows: Tensor) -> Tensor:
        """Return logits (B, 10) for images (B, 8, 8)."""
        output, _ = self.lstm(rows)
        return self.head(output[:, -1])


def train(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):
        for batch in torch.randperm(len(images)).split(128):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
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
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    model = DigitClassifier()
    train(model, images[:1500], labels[:1500])
    accuracy = (model(images[1500:]).argmax(1) == labels[1500:]).float().mean().item()
    print(f"accuracy on {len(images) - 1500} images that it has not seen: {accuracy:.3f}")

    background, x = images[:50], images[1500:1503]
    with warnings.catch_warnings():
        # shap warns that it does not know nn.LSTM, and would raise because the values do not add up.
        warnings.simplefilter("ignore")
        wrong = shap.DeepExplainer(model, background).shap_values(x, check_additivity=False)
    decomposed = decompose(model)
    values = shap.DeepExplainer(decomposed, background).shap_values(x)
    print(f"additivity error as it is:   {additivity_error(model, background, x, wrong):.2e}")
    print(f"additivity error decomposed: {additivity_error(decomposed, background, x, values):.2e}")

    for image, logits, attribution in zip(x, model(x), values, strict=True):
        digit = int(logits.argmax())
        per_row = attribution[:, :, digit].sum(1)
        print(f"\ncalled a {digit}; what each row adds to that logit, against the average image:")
        for t in range(8):
            pixels = "".join(" .:*#"[int(4 * pixel)] * 2 for pixel in image[t])
            top = "  <- top row" if t == per_row.argmax() else ""
            print(f"  t={t}  |{pixels}|  {per_row[t]:+6.2f}{top}")


if __name__ == "__main__":
    main()
