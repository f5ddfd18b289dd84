"""Tensors at which multipliers end, although what they hold depends on the inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Cuts:
    """The ends of a run: in the backward pass multipliers arrive there, and go no further."""

    def __init__(self) -> None:
        #: To be asked for their gradients, so that torch goes back so far.
        self.ends: list[Tensor] = []

    def begin(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the same numbers in the same memory that gets multipliers."""
        with torch.enable_grad():
            begun: Tensor = _Begin.apply(self._end(), (tensor.detach(),))  # type: ignore[no-untyped-call]
        return begun

    def begin_here(self, tensor: Tensor) -> bool:
        """Let a tensor itself get multipliers, if torch allows that, for whoever holds it."""
        if tensor.requires_grad or tensor._is_view():
            return False
        with torch.enable_grad():
            _BeginHere.apply(self._end(), tensor)  # type: ignore[no-untyped-call]
        return True

    def _end(self) -> Tensor:
        end = torch.zeros((), requires_grad=True)
        self.ends.append(end)
        return end


def pass_on(tensor: Tensor) -> bool:
    """Let a tensor be told apart from what it was before it was written to unseen, if torch allows that."""
    try:
        with torch.enable_grad():
            _PassOn.apply(tensor)  # type: ignore[no-untyped-call]
    except RuntimeError:
        # Of a view that was made without gradients.
        return False
    return True


class _Begin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, end: Tensor, held: tuple[Tensor]) -> Tensor:
        return held[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return torch.zeros(()), None


class _BeginHere(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, end: Tensor, tensor: Tensor) -> Tensor:
        ctx.mark_dirty(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return torch.zeros(()), None


class _PassOn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.mark_dirty(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        return grads
