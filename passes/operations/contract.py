"""The types in which a family of operations says what becomes of its modules and calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

#: Says whether an argument varies with the inputs.
Varies = Callable[[Any], bool]
#: A textbook module, whose own calls are lowered in turn, with the nodes it takes; or None to leave a call.
Textbook = tuple[nn.Module, tuple[Any, ...]]
#: Takes :data:`Varies` and the arguments of a call, in the function's own signature.
Lowering = Callable[..., Textbook | None]
#: Takes a module and returns what it becomes, None if it stays.
Build = Callable[[Any], nn.Module | None]


class Plain(nn.Module):
    """A textbook module that is a function; the calls that it makes are lowered in turn.

    Args:
        function: takes the operands.

    Example:
        >>> Plain(lambda a, b, share: a + share * (b - a))(1.0, 2.0, 0.5)
        1.5

    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *operands: Any) -> Any:
        """Return what the function returns."""
        return self.function(*operands)
