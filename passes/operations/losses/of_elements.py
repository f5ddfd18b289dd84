"""Losses that compare two numbers, element by element."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

from passes.operations.contract import is_number


def weighted(losses: Any, weight: Any) -> Any:
    """Return losses times their weights, if they have some."""
    return losses if weight is None else losses * weight


def mse(input: Any, target: Any, weight: Any = None) -> Any:
    """Return the loss of ``F.mse_loss`` for each element."""
    return weighted(torch.square(input - target), weight)


def l1(input: Any, target: Any, weight: Any = None) -> Any:
    """Return the loss of ``F.l1_loss`` for each element."""
    return weighted(torch.abs(input - target), weight)


def smooth_l1(input: Any, target: Any, beta: float = 1.0) -> Any:
    """Return the loss of ``F.smooth_l1_loss``: half a square near 0, of which the rest is linear."""
    if beta == 0:
        return l1(input, target)
    return huber(input, target, delta=beta) / beta


def huber(input: Any, target: Any, weight: Any = None, delta: float = 1.0) -> Any:
    """Return the loss of ``F.huber_loss``: ``delta (|d| - h) + h h / 2``, where h is |d|, at most delta.

    Both are functions of |d| alone, so the sum of their chords is the chord of the loss.
    """
    size = torch.abs(input - target)
    near = torch.clamp(size, max=delta)
    return weighted(delta * (size - near) + torch.square(near) / 2, weight)


def binary_cross_entropy(input: Any, target: Any, weight: Any = None) -> Any:
    """Return the loss of ``F.binary_cross_entropy``, whose logarithms are at least -100."""
    yes, no = torch.log(input), torch.log1p(-input)
    losses = -(target * torch.clamp(yes, min=-100) + (1 - target) * torch.clamp(no, min=-100))
    return weighted(losses, weight)


def binary_cross_entropy_with_logits(
    input: Any, target: Any, weight: Any = None, pos_weight: Any = None
) -> Any:
    """Return the loss of ``F.binary_cross_entropy_with_logits``."""
    yes = weighted(target, pos_weight)
    return weighted(-(yes * F.logsigmoid(input) + (1 - target) * F.logsigmoid(-input)), weight)


def soft_margin(input: Any, target: Any) -> Any:
    """Return the loss of ``F.soft_margin_loss``."""
    return -F.logsigmoid(target * input)


def kl_div(input: Any, target: Any, log_target: bool = False) -> Any:
    """Return the loss of ``F.kl_div``."""
    if log_target:
        return torch.exp(target) * (target - input)
    return -torch.special.entr(target) - target * input


def poisson_nll(
    input: Any, target: Any, log_input: bool = True, full: bool = False, eps: float = 1e-8
) -> Any:
    """Return the loss of ``F.poisson_nll_loss``."""
    losses = torch.exp(input) - target * input if log_input else input - target * torch.log(input + eps)
    return losses + _stirling(target) if full else losses


def _stirling(count: Any) -> Any:
    """Return Stirling's formula for the logarithm of a factorial, above 1; it begins there with a step."""
    above = torch.clamp(count, min=1)
    formula = -torch.special.entr(above) - above + 0.5 * torch.log(2 * math.pi * above)
    step = 0.5 * math.log(2 * math.pi) - 1
    return formula - step + step * torch.clamp(torch.sign(count - 1), min=0)


def gaussian_nll(input: Any, target: Any, var: Any, full: bool = False, eps: float = 1e-6) -> Any:
    """Return the loss of ``F.gaussian_nll_loss``, of a variance that broadcasts to the input."""
    if is_number(var):
        log: Any = math.log(max(var, eps))
        var = max(var, eps)
    else:
        var = torch.clamp(var, min=eps)
        log = torch.log(var)
    losses = 0.5 * (log + torch.square(input - target) / var)
    return losses + 0.5 * math.log(2 * math.pi) if full else losses


def hinge_embedding(input: Any, target: Any, margin: float = 1.0) -> Any:
    """Return the loss of ``F.hinge_embedding_loss``."""
    apart = torch.where(target != 1, F.relu(margin - input), 0.0)
    return apart + torch.where(target != -1, input, 0.0)
