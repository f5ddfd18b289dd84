"""Code that writes in place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CASES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {}


class Model(nn.Module):
    """A case between linear layers; it never sees the input itself."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.first = nn.Linear(3, 4)
        self.square = nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)
        self.gelu = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return CASES[self.name](self, self.first(x)).flatten(1).sum(1, keepdim=True)


def case(function: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    CASES[function.__name__] = function
    return function


@case
def second_name(model: nn.Module, h: Tensor) -> Tensor:
    z = h
    z += 1
    return h * h


@case
def residual(model: nn.Module, h: Tensor) -> Tensor:
    r = h
    h = model.square(torch.relu(h))
    h += r
    return h.tanh_()


@case
def method(model: nn.Module, h: Tensor) -> Tensor:
    h.mul_(h).add_(1, alpha=2).clamp_(max=2.0)
    return h.exp_()


@case
def operators(model: nn.Module, h: Tensor) -> Tensor:
    h -= 0.5
    h /= 2
    g = torch.sigmoid(h)
    g *= h
    g **= 2
    h @= model.square.weight
    return g + h


@case
def function_in_place(model: nn.Module, h: Tensor) -> Tensor:
    F.relu(h, inplace=True)
    h = F.elu_(h - 0.5)
    F.leaky_relu(h, 0.2, True)
    torch.sigmoid_(h)
    return h * h


@case
def layer_in_place(model: nn.Module, h: Tensor) -> Tensor:
    y = model.relu(h)
    return y + h * y


@case
def layers_in_place(model: nn.Module, h: Tensor) -> Tensor:
    return model.square(model.relu(model.gelu(model.relu(h))))


@case
def view_is_written(model: nn.Module, h: Tensor) -> Tensor:
    y = h[:, 0]
    y.add_(1)
    return h * h


@case
def view_is_rectified(model: nn.Module, h: Tensor) -> Tensor:
    h[:, 1:].relu_()
    return h * h


@case
def view_by_method(model: nn.Module, h: Tensor) -> Tensor:
    h.narrow(1, 0, 2).exp_()
    return h * h


@case
def transposed_view(model: nn.Module, h: Tensor) -> Tensor:
    t = h.T
    t += 1
    return h * h


@case
def base_is_written(model: nn.Module, h: Tensor) -> Tensor:
    y = h[:, :2]
    h.mul_(h)
    return (h.sum(1, keepdim=True) + y.exp()).tanh()


@case
def overlapping_views(model: nn.Module, h: Tensor) -> Tensor:
    y, z = h[:, :2], h[:, 1:3]
    y.tanh_()
    return z * z


@case
def views_of_views(model: nn.Module, h: Tensor) -> Tensor:
    v = h[:, :2]
    u = h.view(-1, 4)
    v.exp_()
    u.tanh_()
    h.add_(1)
    return torch.cat([h * u, v], 1)


@case
def copy_is_not_a_view(model: nn.Module, h: Tensor) -> Tensor:
    c = h[:, [0, 1]]
    c.exp_()
    return h.sum(1, keepdim=True).tanh() + c


@case
def items_of_zeros(model: nn.Module, h: Tensor) -> Tensor:
    out = h.new_zeros(h.shape[0], 3)
    out[:, 0] = h[:, 0]
    out[:, 1:] = torch.tanh(h[:, :2])
    out[:, -1] += 1
    return torch.exp(out)


@case
def decoder(model: nn.Module, h: Tensor) -> Tensor:
    out = torch.zeros(h.shape[0], 3, 4, dtype=h.dtype)
    for t in range(3):
        h = torch.tanh(model.square(h))
        out[:, t] = h
        out[:, t, 0] *= h[:, 1]
    return out * out


@case
def item_is_multiplied(model: nn.Module, h: Tensor) -> Tensor:
    h[:, 1] *= h[:, 0]
    h[..., 2] = h[..., 1] * 2
    return torch.sigmoid(h)


@case
def items_by_index(model: nn.Module, h: Tensor) -> Tensor:
    h[:, [0, 2]] = h[:, [1, 3]] * 2
    return h.tanh()


@case
def copied(model: nn.Module, h: Tensor) -> Tensor:
    g = torch.zeros_like(h)
    g.copy_(h)
    g.mul_(h)
    return g


@case
def broadcast_copy(model: nn.Module, h: Tensor) -> Tensor:
    g = h.clone()
    g.copy_(h[:, :1])
    return g * h


@case
def filled(model: nn.Module, h: Tensor) -> Tensor:
    h[:, 0].fill_(2.0)
    h[:, 1].zero_()
    h.masked_fill_(torch.ones_like(h) < 0, 3.0)
    return h * h


@case
def constant_with_a_view(model: nn.Module, h: Tensor) -> Tensor:
    out = h.new_zeros(h.shape[0], 4)
    u = out.view(-1, 2, 2)
    out[:, :2] = h[:, :2]
    return out.exp() + u.exp().flatten(1)


@case
def sizes(model: nn.Module, h: Tensor) -> Tensor:
    n = h.shape[1]
    n += 1
    n *= 2
    return h.tanh() * n
