"""What stock ``shap.DeepExplainer`` does at each module, restated: rules by class name, state on modules.

``tests/rewriter/diagnosis/test_diagnose.py`` compares the names with those of the shap that is installed, and
the sum of all local errors with the additivity error of stock shap itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.user_code.observe import Call

#: Modules that get the slope of the chord, element by element.
NONLINEAR = {"ELU", "GELU", "LeakyReLU", "ReLU", "SELU", "Sigmoid", "Softmax", "Softplus", "Tanh"}
#: Modules whose multipliers go to the positions of the maxima.
POOLS = {"MaxPool1d", "MaxPool2d", "MaxPool3d"}
_SMALL = 1e-6
_SMALL_IN_POOLS = 1e-7


class StockRules:
    """Gives results of modules the multipliers that stock shap would.

    It keeps a module's input and output on the module: of several calls the last one's count for all.

    Args:
        hooked: whether it finds modules at all; else all is left to gradients.

    """

    def __init__(self, *, hooked: bool = True) -> None:
        self.hooked = hooked
        self.last: dict[str, tuple[Tensor, Tensor]] = {}
        self.calls: dict[str, int] = {}

    def __call__(
        self, call: Call, args: tuple[Any, ...], args0: list[Tensor], result: Any, result0: list[Tensor]
    ) -> Any:
        """Return ``result`` with the multipliers of stock shap's rule for the module, if it has one."""
        name = type(call.function).__name__
        if not self.hooked or name not in NONLINEAR | POOLS or not (args and isinstance(args[0], Tensor)):
            return result
        self.calls[call.name] = self.calls.get(call.name, 0) + 1
        x = args[0]
        if getattr(call.function, "inplace", False):
            # Before it was written to; stock shap stops with an error there.
            x = x.clone()
        self.last[call.name] = x.detach(), result.detach().clone()
        return _Stock.apply(self, call, result, x)  # type: ignore[no-untyped-call]


class _Stock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rules: StockRules, call: Call, result: Tensor, x: Tensor) -> Tensor:
        ctx.rules, ctx.call = rules, call
        ctx.save_for_backward(x)
        return result.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        (own,) = ctx.saved_tensors
        module = ctx.call.function
        x, y = ctx.rules.last[ctx.call.name]
        if x.shape != own.shape or x.shape[0] % 2:
            x, y = own, plain(module, own)
        if type(module).__name__ in POOLS:
            return None, None, None, _to_maxima(module, x, y, grad)
        return None, None, None, _chord(module, own, x, y, grad)


def plain(module: nn.Module, x: Tensor) -> Tensor:
    """Run a module on what does not need gradients."""
    with torch.no_grad():
        result: Tensor = type(module).forward(module, x.clone())
        return result


def _chord(module: nn.Module, own: Tensor, x: Tensor, y: Tensor, grad: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = own.detach().requires_grad_()
        (slope,) = torch.autograd.grad(type(module).forward(module, leaf.clone()), leaf, grad)
    delta_in, delta_out = (
        (each[: len(x) // 2] - each[len(x) // 2 :]).repeat(2, *_ones(each)) for each in (x, y)
    )
    small = delta_in.abs() < _SMALL
    return torch.where(small, slope, grad * (delta_out / torch.where(small, 1, delta_in)))


def _to_maxima(module: Any, x: Tensor, y: Tensor, grad: Tensor) -> Tensor:
    size = type(module).__name__[-2:]
    pool, unpool = getattr(F, f"max_pool{size}"), getattr(F, f"max_unpool{size}")
    a, b = y.chunk(2)
    higher = torch.maximum(a, b)
    geometry = module.kernel_size, module.stride, module.padding
    _, index = pool(x, *geometry, module.dilation, module.ceil_mode, True)
    # What comes back for the references; stock shap takes the samples' for one of the two terms.
    grad = grad[len(grad) // 2 :].repeat(2, *_ones(grad))
    given = unpool(grad * torch.cat([higher - b, a - higher]), index, *geometry, list(x.shape))
    of_samples, of_references = given.chunk(2)
    delta = x[: len(x) // 2] - x[len(x) // 2 :]
    small = delta.abs() < _SMALL_IN_POOLS
    multiplier = torch.where(small, 0, (of_samples + of_references) / torch.where(small, 1, delta))
    return torch.cat([torch.zeros_like(multiplier), multiplier])


def _ones(x: Tensor) -> list[int]:
    return [1] * (x.dim() - 1)
