"""What a layer of Keras becomes, and what becomes of the mask that Keras sends along with its input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import nn

from passes.errors import RewriteError


class UnsupportedError(RewriteError):
    """A layer that no torch module is known for; the message says why, and names no layer."""


@dataclass(frozen=True)
class Translation:
    """What one layer becomes.

    Args:
        module: takes what the layer takes, without ``training``.
        masks: arguments of the module that take the mask of an argument of the layer, by that one's name;
            ``""`` is the first one.
        makes: a module that makes the mask of the output: of the input, or of the inputs' masks.
        out: the mask of the output: that of the first input, none, what ``makes`` makes of the first input
            (``"made"``) or of the masks of all tensors in it (``"merged"``).

    """

    module: nn.Module
    masks: tuple[tuple[str, str], ...] = ()
    makes: nn.Module | None = None
    out: Literal["kept", "none", "made", "merged"] = "kept"


#: Makes the translation of a layer.
Translate: TypeAlias = Callable[[Any], Translation]


def stays(module: nn.Module) -> Translation:
    """Return the translation of a layer that hands the mask on.

    Example:
        >>> stays(nn.Tanh()).out
        'kept'

    """
    return Translation(module)


def drops(module: nn.Module) -> Translation:
    """Return the translation of a layer behind which there is no mask.

    Example:
        >>> drops(nn.Flatten()).out
        'none'

    """
    return Translation(module, out="none")
