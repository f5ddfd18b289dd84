"""Slopes of chords written so that nothing is lost where the two ends are close.

Each takes an element at the sample and at the reference, what the function made of them, and the
function's own options. From identities such as ``exp(a) - exp(b) = exp(b) expm1(a - b)``; where the ends
are far apart, and the difference of the values has all its digits, some are the plain quotient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from passes.operations.elementwise.sigmoid_tanh_relu import sigmoid_multiplier, tanh_multiplier

Slope = Callable[..., Tensor]


def quotient(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Return the slope of the chord as it is defined, 0 / 1 where the ends are equal."""
    delta = x - x0
    return (y - y0) / torch.where(delta == 0, 1, delta)


def _decay(delta: Tensor, rate: float = 1.0) -> Tensor:
    """Return ``(1 - exp(-|delta| rate)) / |delta|``, ``rate`` at 0."""
    size = delta.abs() + torch.finfo(delta.dtype).tiny
    # Below that the first term of the series is all there is; the smallest numbers have few digits.
    small = size * abs(rate) < torch.finfo(delta.dtype).eps ** 2
    return torch.where(small, rate, -torch.expm1(-size * rate) / torch.where(small, 1, size))


def exponential(rate: float) -> Slope:
    """Return the slope of ``exp(rate * x)``."""

    def slope(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
        # From the larger value down, so that nothing overflows but where a value does.
        return torch.maximum(y, y0) * _decay(x - x0, rate)

    return slope


def expm1(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Return the slope of ``exp(x) - 1``."""
    return torch.maximum(x, x0).exp() * _decay(x - x0)


def powers(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor, base: float) -> Tensor:
    """Return the slope of ``base ** x``."""
    if base <= 0:
        return quotient(x, x0, y, y0)
    # The larger value is that of the larger exponent, or of the smaller one for a base below 1.
    rate = abs(math.log(base))
    return math.copysign(1.0, math.log(base)) * torch.maximum(y, y0) * _decay(x - x0, rate)


def _log1p_over(u: Tensor) -> Tensor:
    """Return ``log1p(u) / u`` for u >= 0, 1 at 0."""
    u = u + torch.finfo(u.dtype).tiny
    return torch.log1p(u) / u


def logarithm(base: float, shift: float = 0.0) -> Slope:
    """Return the slope of the logarithm of ``x + shift``."""

    def slope(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
        low = torch.minimum(x, x0) + shift
        ratio = (x - x0).abs() / low
        near = _log1p_over(ratio) / low / math.log(base)
        plain = quotient(x, x0, y, y0)
        return torch.where((ratio < 1) & (low > 0), near, plain)

    return slope


def power(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor, exponent: float) -> Tensor:
    """Return the slope of ``x ** exponent``."""
    a, b = x.abs(), x0.abs()
    low = torch.minimum(a, b)
    ratio = (a - b).abs() / low
    # |x|^p - |x0|^p = low^p (exp(p log1p(ratio)) - 1), with the sign of x outside where p is an odd number.
    growth = torch.expm1(exponent * torch.log1p(ratio)) / (ratio + torch.finfo(x.dtype).tiny)
    growth = torch.where(ratio < torch.finfo(x.dtype).eps ** 2, exponent, growth)
    odd = float(exponent).is_integer() and exponent % 2 == 1
    sign = 1.0 if odd else torch.sign(x)
    near = sign * low.pow(exponent - 1) * growth
    # Between values of which torch makes nan there is no slope either; nan is in the plain quotient.
    alike = (torch.sign(x) == torch.sign(x0)) & (ratio < 1) & ~(y - y0).isnan()
    equal = (x == x0) & (x == 0)
    return torch.where(
        equal, exponent * x.pow(exponent - 1), torch.where(alike, near, quotient(x, x0, y, y0))
    )


def reciprocal(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Return the slope of ``1 / x``."""
    return -y * y0


def sqrt(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Return the slope of the root."""
    return 1 / (y + y0)


def rsqrt(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Return the slope of the reciprocal root."""
    return -y * y0 / (x.sqrt() + x0.sqrt())


def square(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Return the slope of ``x ** 2``."""
    return x + x0


def magnitude(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Return the slope of ``|x|``, complex or not, from ``|x|² - |x0|² = Re(conj(x + x0) (x - x0))``."""
    both = y + y0
    return (x + x0).conj() / torch.where(both == 0, 1, both)


def hardsigmoid(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Return the slope of ``clip(x, -3, 3) / 6 + 1/2``, of which torch's derivative has float32's digits."""
    inside = x.clamp(-3, 3), x0.clamp(-3, 3)
    return torch.where(x == x0, (x.abs() < 3).to(x.dtype), quotient(x, x0, *inside)) / 6


def log_of_sum(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Return the slope of ``log(1 + exp(x))``, from ``y - y0 = -log1p(s(high) expm1(-|delta|))``."""
    delta = x - x0
    high = torch.maximum(x, x0)
    fall = torch.sigmoid(high) * _decay(delta)
    product = fall * delta.abs()
    near = fall * torch.where(product == 0, 1, -torch.log1p(-product) / torch.where(product == 0, 1, product))
    return torch.where(delta.abs() < 1, near, quotient(x, x0, y, y0))


def softplus(
    x: Tensor, x0: Tensor, y: Tensor, y0: Tensor, beta: float = 1.0, threshold: float = 20.0
) -> Tensor:
    """Return the slope of ``log(1 + exp(beta x)) / beta``."""
    # Torch returns x itself above the threshold, and jumps there by up to exp(-threshold) / beta.
    above, above0 = x * beta > threshold, x0 * beta > threshold
    slope = log_of_sum(x * beta, x0 * beta, y * beta, y0 * beta)
    slope = torch.where(above == above0, slope, quotient(x, x0, y, y0))
    return torch.where(above & above0, 1, slope)


def logsigmoid(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Return the slope of the logarithm of the logistic function."""
    return log_of_sum(-x, -x0, -y, -y0)


def _gated(x: Tensor, x0: Tensor, gate: Tensor, gate0: Tensor, slope: Tensor) -> Tensor:
    """Return the slope of ``x * gate(x)``."""
    return (gate + gate0) / 2 + (x + x0) / 2 * slope


def silu(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Return the slope of ``x`` times its sigmoid."""
    gate, gate0 = torch.sigmoid(x), torch.sigmoid(x0)
    (slope,) = sigmoid_multiplier((x,), (x0,), gate, gate0)
    return _gated(x, x0, gate, gate0, slope)


def mish(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Return the slope of ``x tanh(softplus(x))``."""
    sums, sums0 = (F.softplus(each, threshold=40) for each in (x, x0))
    gate, gate0 = torch.tanh(sums), torch.tanh(sums0)
    (outer,) = tanh_multiplier((sums,), (sums0,), gate, gate0)
    return _gated(x, x0, gate, gate0, outer * log_of_sum(x, x0, sums, sums0))


def gelu(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor, approximate: str = "none") -> Tensor:
    """Return the slope of ``x`` times the normal distribution function, or its approximation by tanh."""
    if approximate == "none":
        scale = math.sqrt(0.5)
        gate, gate0 = torch.erf(x * scale), torch.erf(x0 * scale)
        slope = erf(x * scale, x0 * scale, gate, gate0) * scale
    else:
        # Beyond, the tangent is 1 or -1 in any dtype, and cubes do not overflow here.
        a, b = x.clamp(-20, 20), x0.clamp(-20, 20)
        scale, cubic = math.sqrt(2 / math.pi), 0.044715
        inner, inner0 = (scale * (each + cubic * each**3) for each in (a, b))
        gate, gate0 = torch.tanh(inner), torch.tanh(inner0)
        (outer,) = tanh_multiplier((inner,), (inner0,), gate, gate0)
        slope = outer * scale * (1 + cubic * (a * a + a * b + b * b))
        slope = torch.where((a == x) & (b == x0), slope, quotient(x, x0, gate, gate0))
    return _gated(x, x0, 1 + gate, 1 + gate0, slope) / 2


# Nodes and weights of Gauss and Legendre in (0, 1), 8 points: exact to degree 15.
_NODES = (
    (0.019855071751231884, 0.05061426814518813),
    (0.10166676129318664, 0.11119051722668724),
    (0.2372337950418355, 0.15685332293894363),
    (0.4082826787521751, 0.18134189168918100),
    (0.5917173212478249, 0.18134189168918100),
    (0.7627662049581645, 0.15685332293894363),
    (0.8983332387068134, 0.11119051722668724),
    (0.9801449282487681, 0.05061426814518813),
)


def mean_of(derivative: Callable[[Tensor], Tensor], x: Tensor, x0: Tensor) -> Tensor:
    """Return the mean of a smooth derivative between two points, which is the slope of the chord."""
    delta = x - x0
    total = torch.zeros_like(delta)
    for node, weight in _NODES:
        total = total + weight * derivative(x0 + node * delta)
    return total


def erf(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Return the slope of the error function."""
    near = mean_of(lambda t: torch.exp(-t * t), x, x0) * (2 / math.sqrt(math.pi))
    return torch.where((x - x0).abs() < 0.5, near, quotient(x, x0, y, y0))


def erfc(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Return the slope of one less the error function."""
    return -erf(x, x0, -y, -y0)


def ndtr(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Return the slope of the normal distribution function."""
    a, b = x * math.sqrt(0.5), x0 * math.sqrt(0.5)
    return erf(a, b, torch.erf(a), torch.erf(b)) * (math.sqrt(0.5) / 2)


def elu(
    x: Tensor, x0: Tensor, y: Tensor, y0: Tensor, alpha: float = 1.0, scale: float = 1.0, rate: float = 1.0
) -> Tensor:
    """Return the slope of ``scale * max(x, 0) + scale * alpha * expm1(rate * min(x, 0))``."""
    below = scale * alpha * torch.exp(rate * torch.maximum(x, x0).clamp(max=0)) * _decay(x - x0, rate)
    positive, positive0 = x > 0, x0 > 0
    slope = torch.where(positive & positive0, scale, below)
    # Across 0 the values have opposite signs (or alpha has one that torch allows and nobody uses).
    return torch.where(positive == positive0, slope, quotient(x, x0, y, y0))


def celu(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor, alpha: float = 1.0) -> Tensor:
    """Return the slope of the continuously differentiable exponential unit."""
    if alpha <= 0:
        return quotient(x, x0, y, y0)
    return elu(x, x0, y, y0, alpha, 1.0, 1 / alpha)


def selu(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Return the slope of the scaled exponential unit."""
    # The constants of Klambauer et al. 2017, as torch has them.
    return elu(x, x0, y, y0, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


def softsign(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Return the slope of ``x / (1 + |x|)``."""
    alike = torch.sign(x) * torch.sign(x0) >= 0
    near = 1 / (1 + x.abs()) / (1 + x0.abs())
    return torch.where(alike, near, quotient(x, x0, y, y0))


def tanhshrink(x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Return the slope of ``x - tanh(x)``."""
    (slope,) = tanh_multiplier((x,), (x0,), torch.tanh(x), torch.tanh(x0))
    return 1 - slope
