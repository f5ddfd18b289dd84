"""How far outputs are off by rounding, measured by Monte Carlo arithmetic.

Each operation of a few runs gets its operands off by one rounding, at random (Parker 1997, "Monte Carlo
arithmetic"). What the outputs move is what rounding may make of them, also where larger numbers cancel.
What jumps as far by one rounding as by a thousand is a decision, and no rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from rewriter.engine.problem import Inputs, Target

_RUNS = 4
# Roundings of the larger step, and how far from proportional a response may be.
_LARGER = 1024
_UNEVEN = 32


class _Moved(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Move the operands of each operation by some roundings; whole numbers have none: lengths, masks."""

    def __init__(self, seed: int, roundings: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.generators: dict[torch.device, torch.Generator] = {}
        self.seed = seed
        self.roundings = roundings

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        if any(each.alias_info is not None for each in (*schema.returns, *schema.arguments)):
            # A view, or something that is written to.
            return func(*args, **kwargs)
        moved = pytree.tree_map_only(Tensor, self._moved, (args, kwargs))
        return func(*moved[0], **moved[1])

    def _moved(self, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        if value.device not in self.generators:
            self.generators[value.device] = torch.Generator(value.device).manual_seed(self.seed)
        generator = self.generators[value.device]
        signs = torch.randint(0, 2, value.shape, generator=generator, device=value.device) * 2 - 1
        factor = 1 + self.roundings * torch.finfo(value.dtype).eps * signs.to(value.dtype)
        return torch.where(value == value.round(), value, value * factor)


def rounding_of(target: Target, inputs: Inputs) -> Tensor:
    """Return how far rounding moves each output of some rows, (rows, outputs), on the CPU.

    Args:
        target: what is explained.
        inputs: rows of the model's inputs.

    Example:
        >>> from torch import nn
        >>> from rewriter.explainer.target import Asked, linked_target
        >>> linear = nn.Linear(2, 1, bias=False).double()
        >>> _ = nn.init.constant_(linear.weight, 1 / 3)
        >>> target, _ = linked_target(Asked(linear))
        >>> x = torch.tensor([[1 / 3, 1 / 7], [1e6 / 3, -1e6 / 3]]).double()
        >>> small, cancels = rounding_of(target, [x])[:, 0].tolist()
        >>> small < 1e-15 < 1e-12 < cancels < 1e-9
        True

    """

    def run(mode: Any = None) -> Tensor:
        copies = [each.clone() for each in inputs]
        with torch.inference_mode(False), torch.no_grad():
            if mode is None:
                return target.run(copies)
            with mode:
                return target.run(copies)

    plain = run()

    def moved_by(roundings: int) -> Tensor:
        return torch.stack([(run(_Moved(seed, roundings)) - plain).abs() for seed in range(_RUNS)]).amax(0)

    moved = moved_by(1)
    moved = torch.where(_LARGER * moved > _UNEVEN * moved_by(_LARGER), 0, moved)
    return moved.reshape(len(moved), -1).double().cpu()
