"""Functions of each element as atoms: activations, powers, exponentials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from passes.atoms import Atom, ReLUAtom, SigmoidAtom, TanhAtom
from passes.lower_calls import Lowering, Textbook, Varies
from passes.module_lowerings import Build

#: What an :class:`Elementwise` may compute.
FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "exp": torch.exp,
    "log": torch.log,
    "reciprocal": torch.reciprocal,
    "rsqrt": torch.rsqrt,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "gelu": torch.nn.functional.gelu,
}


class Elementwise(Atom):
    """A function of each element.

    Args:
        function: a key of :data:`FUNCTIONS`.
        options: further arguments of the function, plain numbers or names.

    Example:
        >>> Elementwise("square")(torch.tensor([3.0]))
        tensor([9.])

    """

    def __init__(self, function: str, **options: Any) -> None:
        super().__init__()
        self.function = function
        self.options = options

    def forward(self, input: Tensor) -> Tensor:
        """Return the function of ``input``, any shape."""
        return FUNCTIONS[self.function](input, **self.options)

    def extra_repr(self) -> str:
        """Show the function."""
        return ", ".join([self.function, *(f"{key}={value}" for key, value in self.options.items())])


def _unary(atom: Callable[[], Atom]) -> Lowering:
    def lower(varies: Varies, input: Any) -> Textbook:
        return atom(), (input,)

    return lower


CALLS: Mapping[Any, Lowering] = {
    torch.relu: _unary(ReLUAtom),
    torch.sigmoid: _unary(SigmoidAtom),
    torch.tanh: _unary(TanhAtom),
    "relu": _unary(ReLUAtom),
    "sigmoid": _unary(SigmoidAtom),
    "tanh": _unary(TanhAtom),
    torch.exp: _unary(lambda: Elementwise("exp")),
    "exp": _unary(lambda: Elementwise("exp")),
}

MODULES: Mapping[type[nn.Module], Build] = {
    nn.ReLU: lambda module: ReLUAtom(),
    nn.Sigmoid: lambda module: SigmoidAtom(),
    nn.Tanh: lambda module: TanhAtom(),
    nn.GELU: lambda module: Elementwise("gelu", approximate=module.approximate),
}
