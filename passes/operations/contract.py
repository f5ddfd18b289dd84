"""What a family of operations exports: what becomes of its calls and modules, and the rules of its atoms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from passes.errors import RewriteError

#: Says whether an argument varies with the inputs.
Varies = Callable[[Any], bool]
#: A textbook module, whose own calls are lowered in turn, with the nodes it takes; or None to leave a call.
Textbook = tuple[nn.Module, tuple[Any, ...]]
#: Takes :data:`Varies` and the arguments of a call by name.
Lowering = Callable[..., Textbook | None]
#: Takes a module and returns what it becomes, None if it stays.
Build = Callable[[Any], nn.Module | None]

Operands = tuple[Tensor, ...]
#: Takes the operands of an elementwise atom at samples and references, and what it made of them, all of one
#: shape; returns one multiplier for each: Σ multiplier · (operand − reference) = output − its reference.
Multipliers = Callable[[Operands, Operands, Tensor, Tensor], Operands]
#: Takes the operands of samples and references, (n or 1, *operand shape), what the atom made of them,
#: (n or 1, *output shape), and multipliers of its output, (K, n, *output shape), to those of its
#: operands, (K, n, *operand shape).
Pull = Callable[[Operands, Operands, Tensor, Tensor, Tensor], Operands]


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


@dataclass(frozen=True)
class BoundRule:
    """The rule of one atom.

    Args:
        pull: what it does to multipliers.
        multipliers: of the operands of an elementwise atom, which are to be brought to the shape of the
            output first; None for atoms that mix elements.
        keeps_integers: whether operands of whole numbers, such as places, come as they are; else all
            operands have the type of the output.

    """

    pull: Pull
    multipliers: Multipliers | None = None
    keeps_integers: bool = False

    @property
    def elementwise(self) -> bool:
        """Whether the rule acts on each element by itself."""
        return self.multipliers is not None


#: Takes an atom and returns its rule.
Rule = Callable[[Any], BoundRule]


def pulled(pull: Callable[..., Operands], *, complex: bool = False, keeps_integers: bool = False) -> Rule:
    """Make a rule of a function that takes the atom, then what a :data:`Pull` takes.

    Args:
        pull: the function.
        complex: whether it is true of complex numbers.
        keeps_integers: whether it takes operands of whole numbers as they are.

    """

    def bind(atom: Any) -> BoundRule:
        return BoundRule(partial(_guarded, atom, partial(pull, atom), complex), keeps_integers=keeps_integers)

    return bind


def scaled(choose: Callable[[Any], Multipliers], complex: Callable[[Any], bool] | bool = False) -> Rule:
    """Make a rule of elementwise multipliers.

    Args:
        choose: takes the atom and returns its multipliers.
        complex: whether they are true of complex numbers, or what says so of an atom.

    """

    def bind(atom: Any) -> BoundRule:
        allowed = complex(atom) if callable(complex) else complex
        multipliers = choose(atom)
        return BoundRule(partial(_guarded, atom, partial(_multiply, multipliers), allowed), multipliers)

    return bind


def always(multipliers: Multipliers) -> Callable[[Any], Multipliers]:
    """Choose the same multipliers for every atom of a type."""

    def choose(_: Any) -> Multipliers:
        return multipliers

    return choose


def _multiply(rule: Multipliers, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor) -> Operands:
    # Torch's gradients of complex numbers are conjugates: a change is the real part of conj(d) * delta.
    return tuple(d * multiplier.conj() for multiplier in rule(x, x0, y, y0))


def _guarded(
    atom: nn.Module,
    pull: Pull,
    allowed: bool,
    x: Operands,
    x0: Operands,
    y: Tensor,
    y0: Tensor,
    d: Tensor,
) -> Operands:
    """Refuse complex numbers, of which most rules are not true."""
    if not allowed and any(each.is_complex() for each in (*x, y)):
        name = getattr(atom, "function", None) or type(atom).__name__.removesuffix("Atom").lower()
        raise RewriteError(
            f"{name} has no rule for complex numbers; apply it to their .real and .imag, or to their .abs()"
        )
    if len(x) == 1 and x[0].dim() == y.dim() == 1:
        return (_of_number(atom, x[0], x0[0], y, y0, d),)
    return pull(x, x0, y, y0, d)


def _of_number(atom: nn.Module, x: Tensor, x0: Tensor, y: Tensor, y0: Tensor, d: Tensor) -> Tensor:
    """Take multipliers through a function of one number, which mixes nothing: the slope of its chord."""
    x, x0 = (each.expand(len(d[0]), *each.shape[1:]) for each in (x, x0))
    slope = (y - y0) / torch.where(x == x0, 1, x - x0)
    if bool((x == x0).any()):
        with torch.enable_grad():
            at = [each.detach().clone().requires_grad_() for each in x]
            found = torch.autograd.grad([atom(each) for each in at], at, allow_unused=True)
        derivative = torch.stack([x[0] * 0 if each is None else each for each in found])
        slope = torch.where(x == x0, derivative, slope)
    return d * slope


def is_plain(value: Any) -> bool:
    """Whether an option is a number or a name, known before the model runs.

    Example:
        >>> is_plain(2.0), is_plain("tanh"), is_plain([2.0])
        (True, True, False)

    """
    return isinstance(value, bool | int | float | str | type(None))


def is_number(value: Any) -> bool:
    """Whether an operand is a number of Python's.

    Example:
        >>> is_number(2), is_number(True)
        (True, False)

    """
    return isinstance(value, int | float) and not isinstance(value, bool)


def known_dims(dim: Any) -> tuple[int, ...] | None:
    """Return the dimensions that an argument names; None if it names none, or the model computes them.

    A reduction over all dimensions mixes the rows of a batch, so it has no rule.

    Example:
        >>> known_dims(-1), known_dims([0, 1]), known_dims(None), known_dims(())
        ((-1,), (0, 1), None, None)

    """
    dims = tuple(dim) if isinstance(dim, list | tuple) else (dim,)
    return dims if dims and all(type(each) is int for each in dims) else None


def holds_nodes(*options: Any) -> bool:
    """Whether the model computes an option: it is, or holds, a node of a graph or a tensor.

    Example:
        >>> import torch
        >>> holds_nodes(1, (2, None)), holds_nodes([torch.ones(1)])
        (False, True)

    """
    found: list[Any] = []

    def note(value: Any) -> Any:
        if isinstance(value, fx.Node | Tensor):
            found.append(value)
        return value

    fx.node.map_aggregate(options, note)
    return bool(found)


def rank_of(value: Any) -> int | None:
    """Return the number of dimensions of a tensor, or of a node of a graph that has its shape noted.

    Example:
        >>> import torch
        >>> rank_of(torch.ones(2, 3)), rank_of(1)
        (2, None)

    """
    if isinstance(value, fx.Node):
        value = value.meta.get("val", value.meta.get("tensor_meta"))
    shape = getattr(value, "shape", None)
    return None if shape is None else len(shape)
