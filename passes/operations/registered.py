"""Rules of atoms that users define: the door through which a rule comes in from outside of the families."""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from passes.errors import RewriteError
from passes.leaves import Atom
from passes.operations.catalogue import FAMILIES
from passes.operations.contract import Multipliers, Operands, Rule, pulled, scaled
from passes.operations.elementwise.chord import chord_multiplier

#: The rule of each type of atom that was registered.
REGISTERED: dict[type[nn.Module], Rule] = {}


def register_rule(
    atom: type[Atom],
    *,
    multipliers: Callable[..., Operands] | None = None,
    pull: Callable[..., Operands] | None = None,
) -> None:
    """Give atoms of a type of your own their attribution rule, for every explainer in this process.

    With ``x, x0`` the operands at samples and references and ``y, y0`` what the atom made of them, a rule is
    exact if its multipliers, times the changes of the operands, sum to ``y - y0``. It should divide by no
    difference, and be the derivative where nothing differs. ``decompose`` leaves an atom one piece, and so
    do all explainers. Registering a type again replaces its rule.

    Args:
        atom: a class that derives from :class:`rewriter.Atom`. Its ``forward`` takes tensors, batch first,
            and is a pure function of them.
        multipliers: of an atom that computes each element by itself: takes ``(atom, x, x0, y, y0)``, operands
            as tuples of tensors of the output's shape, and returns one multiplier for each, of that shape.
        pull: of an atom that mixes elements: takes ``(atom, x, x0, y, y0, d)``, operands as tuples of
            (n or 1, *operand shape), outputs (n or 1, *output shape), and multipliers ``d`` of the output,
            (K, n, *output shape); returns those of the operands, (K, n, *operand shape) each.
            Without either the atom is a function of each element of one operand, and its rule the slope
            of the chord, found from torch's derivative.

    Raises:
        RewriteError: for a class that is no atom or has a rule in this package, or for both kinds of rule.
            Whoever explains gets one if a rule does not return one tensor of the right shape per operand.

    Example:
        >>> import torch
        >>> class Squared(Atom):
        ...     def forward(self, x):
        ...         return x * x
        >>> register_rule(Squared, multipliers=lambda atom, x, x0, y, y0: (x[0] + x0[0],))
        >>> from passes.operations.table import rule_of
        >>> rule_of(Squared()).elementwise
        True

    """
    if not (isinstance(atom, type) and issubclass(atom, Atom)) or atom is Atom:
        raise RewriteError(f"register_rule: expected a class that derives from rewriter.Atom, got {atom!r}")
    if any(atom in family.RULES for family in FAMILIES):
        raise RewriteError(
            f"register_rule: {atom.__name__} has a rule in this package; derive an atom of your own from it"
        )
    if multipliers is not None and pull is not None:
        raise RewriteError(f"register_rule: expected multipliers or pull for {atom.__name__}, got both")
    for name, rule in (("multipliers", multipliers), ("pull", pull)):
        if rule is not None and not callable(rule):
            raise RewriteError(f"register_rule: expected a function as {name}, got {rule!r}")
        _check_signature(atom, name, rule)
    if pull is not None:
        REGISTERED[atom] = pulled(partial(_pull, pull))
    elif multipliers is not None:
        REGISTERED[atom] = scaled(lambda each: partial(_multipliers, multipliers, each))
    else:
        REGISTERED[atom] = scaled(_slope_of_chord)


def _slope_of_chord(atom: Atom) -> Multipliers:
    # Not the instance's forward, which is another one while it is explained.
    function = partial(type(atom).forward, atom)

    def slope(x: Operands, x0: Operands, y: Tensor, y0: Tensor) -> Operands:
        if len(x) != 1 or y.shape[1:] != x[0].shape[1:] or _mixes(function, x[0]):
            raise RewriteError(
                f"register_rule: {type(atom).__name__} is no function of each element of one operand, for "
                "which the slope of the chord is the rule; register it with multipliers= or pull="
            )
        return chord_multiplier(function, x, x0, y, y0)

    return slope


def _mixes(function: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether an element of the result hangs on others: then gradients mix random weights."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        value = function(leaf)
        if not value.requires_grad:
            return False
        weights = (
            torch.rand(value.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
        )
        weights = weights.to(value)
        (plain,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True)
        (weighted,) = torch.autograd.grad((value * weights).sum(), leaf)
    # Weights are apart by far more than float16 rounds.
    return not torch.allclose(weighted, plain * weights, rtol=1e-2, atol=0.0, equal_nan=True)


def _multipliers(
    rule: Callable[..., Operands], atom: Atom, x: Operands, x0: Operands, y: Tensor, y0: Tensor
) -> Operands:
    shape = torch.broadcast_shapes(y.shape, y0.shape)  # type: ignore[no-untyped-call]
    found = _asked(rule, atom, x, x0, y, y0)
    # One row may stand for all that it is paired with.
    return _fitted(atom, found, [tuple(shape)] * len(x), 1, (*x, *x0, y, y0))


def _pull(
    rule: Callable[..., Operands], atom: Atom, x: Operands, x0: Operands, y: Tensor, y0: Tensor, d: Tensor
) -> Operands:
    found = _asked(rule, atom, x, x0, y, y0, d)
    shapes = [(*d.shape[:2], *each.shape[1:]) for each in x]
    return _fitted(atom, found, shapes, 0, (*x, *x0, y, y0, d))


def _check_signature(atom: type[Atom], name: str, rule: Callable[..., Any] | None) -> None:
    """Refuse a rule that does not take what it is given, as far as it says what it takes."""
    given = ("atom", "x", "x0", "y", "y0", *(["d"] if name == "pull" else []))
    try:
        taken = None if rule is None else inspect.signature(rule)
    except (TypeError, ValueError):
        return
    try:
        if taken is not None:
            taken.bind(*given)
    except TypeError as error:
        raise RewriteError(
            f"register_rule: {name}= of {atom.__name__} is called with ({', '.join(given)}), and takes "
            f"{taken}: {error}"
        ) from error


def _asked(rule: Callable[..., Any], atom: Atom, *given: Any) -> Any:
    try:
        return rule(atom, *given)
    except RewriteError:
        raise
    except Exception as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        raise RewriteError(
            f"the rule registered for {type(atom).__name__} raises {type(error).__name__}: {error} "
            f"({os.path.basename(last.filename)}:{last.lineno})"
        ) from error


def _fitted(
    atom: Atom, found: Any, shapes: list[tuple[int, ...]], pairs: int, given: tuple[Tensor, ...]
) -> Operands:
    """Bring multipliers to the shapes that are wanted, and refuse what is no multiplier.

    Args:
        atom: whose rule gave them.
        found: what it gave.
        shapes: one for each operand.
        pairs: leading dimensions in which there may be one row for all.
        given: what the rule was given; the last has the dtype that is wanted.

    """
    like = given[-1]
    parts = found if isinstance(found, tuple | list) else [found]
    if (
        parts is found
        and len(parts) == len(shapes)
        and all(isinstance(each, Tensor) for each in parts)
        and all(_fits(each.shape, shape, pairs) for each, shape in zip(parts, shapes, strict=True))
    ):
        dtypes = {each.dtype for each in parts if each.dtype != like.dtype}
        if dtypes:
            raise RewriteError(
                f"the rule registered for {type(atom).__name__} returned {', '.join(map(str, dtypes))}, "
                f"expected {like.dtype}, in which the model computes: make tensors by torch.ones_like(y)"
            )
        infinite = not all(each.isfinite().all() for each in parts)
        if infinite and all(each.isfinite().all() for each in given):
            raise RewriteError(
                f"the rule registered for {type(atom).__name__} returned infinite numbers or NaN for "
                "operands that are finite; does it divide by a difference that may be 0? Where nothing "
                "differs a multiplier is the derivative"
            )
        return tuple(each.expand(shape) for each, shape in zip(parts, shapes, strict=True))
    got = [tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in parts]
    raise RewriteError(
        f"the rule registered for {type(atom).__name__} returned {got if parts is found else got[0]}, "
        f"expected a tuple of one tensor for each operand, of shapes {shapes}"
    )


def _fits(shape: torch.Size, wanted: tuple[int, ...], pairs: int) -> bool:
    """Whether multipliers have a shape, but for one row that stands for all pairs."""
    return len(shape) == len(wanted) and all(
        a == b or (a == 1 and k < pairs) for k, (a, b) in enumerate(zip(shape, wanted, strict=True))
    )
