"""A kind of line that a drawn model may hold, and how one line of that kind is drawn."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """A kind of line.

    The text holds alternatives, ``[[this|that]]``, and names in braces: ``{a}``, an operand; ``{b}``, one of
    the same shape; ``{c}``, any; ``{new}``, the result; ``{m}``, a name of its own for a module; ``{T}`` and
    ``{C}``, the sizes of the first dimension behind the batch and of the last; ``{S}``, all sizes but the
    batch's; ``{d}`` and ``{e}``, two dimensions other than the batch; ``{i}``, a place in the last dimension;
    ``{k}``, a small number; ``{f}``, a fraction; ``{flag}``.

    Args:
        text: an expression, or statements that assign ``{new}``.
        init: statements of the constructor.
        top: what stands before the class.
        ranks: how many dimensions the first operand may have, the batch among them.
        exact: whether the documentation promises a rule; None where that hangs on the numbers.
        unstable: whether the result hangs on more than the input of a row: random numbers, say, or the batch.

    """

    text: str
    init: str = ""
    top: str = ""
    ranks: tuple[int, ...] = (2, 3, 4)
    exact: bool | None = True
    unstable: bool = False

    @property
    def name(self) -> str:
        """What the form is called in reports."""
        return " ".join(f"{self.top.strip()} {self.init} {self.text}".split())


@dataclass(frozen=True, repr=False)
class Kinds:
    """Forms to choose from.

    Args:
        name: of all of them together, which is all that is printed.
        forms: to choose from.

    """

    name: str
    forms: tuple[Form, ...]

    def __repr__(self) -> str:
        return self.name

    def __add__(self, other: Kinds) -> Kinds:
        return Kinds(f"{self.name}, {other.name}", self.forms + other.forms)


def forms(*texts: str, **options: Any) -> list[Form]:
    """Return one form per text, with the same options.

    Example:
        >>> [each.ranks for each in forms("{a} + 1", "-{a}", ranks=(3,))]
        [(3,), (3,)]

    """
    return [replace(Form(text), **options) for text in texts]


def written(draw: st.DrawFn, text: str, names: Mapping[str, str], shape: Shape) -> str:
    """Fill in a text: alternatives first, then what stands in braces."""
    while found := re.search(r"\[\[((?:(?!\[\[|\]\]).)*)\]\]", text, re.DOTALL):
        chosen = draw(st.sampled_from(found[1].split("|")))
        text = text[: found.start()] + chosen + text[found.end() :]
    drawn = dict(names)

    def fill(found: re.Match[str]) -> str:
        name = found[1]
        if name not in drawn:
            drawn[name] = _value(draw, name, shape, drawn)
        return drawn[name]

    return re.sub(r"\{(\w+)\}", fill, text)


def _value(draw: st.DrawFn, name: str, shape: Shape, drawn: Mapping[str, str]) -> str:
    count = len(shape)
    sizes: dict[str, Callable[[], Any]] = {
        "T": lambda: shape[1],
        "C": lambda: shape[-1],
        "S": lambda: ", ".join(map(str, shape[1:])),
        "d": lambda: draw(st.sampled_from(_dims(count))),
        "e": lambda: draw(st.sampled_from(_dims(count, int(drawn.get("d", 0)) % count))),
        "i": lambda: draw(st.integers(-shape[-1], shape[-1] - 1)),
        "k": lambda: draw(st.integers(1, 3)),
        "f": lambda: draw(st.sampled_from((0.5, 2.0, -1.0, 0.0, 0.3))),
        "flag": lambda: draw(st.booleans()),
    }
    return str(sizes[name]())


def _dims(count: int, besides: int = 0) -> Sequence[int]:
    """Return the dimensions other than the batch and another, counted from either end."""
    return [dim for dim in (*range(1, count), *range(1 - count, 0)) if dim % count != besides] or [-1]
