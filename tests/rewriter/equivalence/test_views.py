"""Parameters that are views of the original's memory, in another layout, answer to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rewriter import check_equivalence


class Stored(nn.Module):
    """Two maps whose weights and biases lie in one parameter each, (I, O), as Keras stores them."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 8))
        self.biases = nn.Parameter(torch.randn(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        first, second = (x @ self.kernel).chunk(2, -1)
        return torch.tanh(first + self.biases[0]) * (second + self.biases[1])


class Seen(nn.Module):
    """The same by torch's layers, on the same memory."""

    def __init__(self, stored: Stored, scale: float = 1.0) -> None:
        super().__init__()
        kernel, biases = stored.kernel.detach(), stored.biases.detach()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(3, 4)
        for k, linear in enumerate((self.first, self.second)):
            linear.weight = nn.Parameter(kernel[:, 4 * k : 4 * k + 4].t())
            linear.bias = nn.Parameter(biases[k])
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        # The gradient of the second's bias, but not its value, is multiplied.
        bias = self.second.bias * self.scale + (1 - self.scale) * self.second.bias.detach()
        return torch.tanh(self.first(x)) * (x @ self.second.weight.t() + bias)


def test_gradients_of_views_add_up_in_the_memory() -> None:
    stored = Stored()
    report = check_equivalence(stored, Seen(stored), torch.randn(5, 3))
    assert report.equal, report
    compared = {each.place for each in report.failures}
    assert not compared


def test_a_wrong_gradient_of_one_view_is_found() -> None:
    stored = Stored()
    report = check_equivalence(stored, Seen(stored, scale=2.0), torch.randn(5, 3))
    assert {each.place for each in report.failures} == {"biases"}
