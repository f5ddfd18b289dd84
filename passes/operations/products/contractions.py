"""Einstein sums: how an equation is read, and how one of many operands becomes products of two."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence

_LETTERS = string.ascii_uppercase + string.ascii_lowercase
_DOTS = "..."


def explicit_equation(equation: str, dims: Sequence[int] | None = None) -> tuple[list[str], str]:
    """Return the letters of each operand and those of the result.

    Args:
        equation: as ``torch.einsum`` takes it; without an arrow, the result has what occurs once, in
            alphabetical order.
        dims: of the operands, to write the dots out as letters too; None to leave them.

    Example:
        >>> explicit_equation("bij, bjk")
        (['bij', 'bjk'], 'ik')
        >>> explicit_equation("...i,oi->...o", (3, 2))
        (['ABi', 'oi'], 'ABo')

    """
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        once = sorted(letter for letter in set(left) - set(",.") if left.count(letter) == 1)
        result = (_DOTS if _DOTS in left else "") + "".join(once)
    if dims is None:
        return terms, result
    widths = [
        dim - len(term.replace(_DOTS, "")) if _DOTS in term else 0
        for term, dim in zip(terms, dims, strict=True)
    ]
    free = "".join(letter for letter in _LETTERS if letter not in equation)[: max(widths)]
    # Dots are aligned from the right, as broadcasting is.
    written = [
        term.replace(_DOTS, free[len(free) - width :]) for term, width in zip(terms, widths, strict=True)
    ]
    return written, result.replace(_DOTS, free)


def pairwise_equations(equation: str) -> list[str]:
    """Split the sum of many operands into steps of two: what came out so far, and the next operand.

    Example:
        >>> pairwise_equations("bi,ij,bj->b")
        ['bi,ij->bj', 'bj,bj->b']

    """
    terms, result = explicit_equation(equation)
    steps = []
    so_far = terms[0]
    for k, term in enumerate(terms[1:], start=2):
        rest = [*terms[k:], result]
        kept = result if k == len(terms) else _kept(so_far, term, rest)
        steps.append(f"{so_far},{term}->{kept}")
        so_far = kept
    return steps


def _kept(a: str, b: str, rest: Iterable[str]) -> str:
    """Return what a later operand or the result asks for, dots first."""
    later = "".join(rest)
    letters = dict.fromkeys((a + b).replace(".", ""))
    dots = _DOTS if _DOTS in a + b else ""
    return dots + "".join(letter for letter in letters if letter in later)


def equation_of_sublists(arguments: Sequence[object]) -> tuple[str, tuple[object, ...]]:
    """Return equation and operands of ``torch.einsum(a, [0, 1], b, [1, 2], [0, 2])``.

    Example:
        >>> equation_of_sublists(("a", [0, 1], "b", [1, ...], [0, ...]))
        ('AB,B...->A...', ('a', 'b'))

    """
    paired = len(arguments) // 2 * 2
    terms = [_term(each) for each in arguments[1:paired:2]]
    result = "->" + _term(arguments[-1]) if len(arguments) > paired else ""
    return ",".join(terms) + result, tuple(arguments[0:paired:2])


def _term(sublist: object) -> str:
    assert isinstance(sublist, Iterable)
    return "".join(_DOTS if each is ... else _LETTERS[each] for each in sublist)
