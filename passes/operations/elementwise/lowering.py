"""What calls and modules of functions of each element become."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from passes.leaves import Atom, ReLUAtom, SigmoidAtom, TanhAtom
from passes.operations.contract import Build, Lowering, Textbook, Varies, is_plain
from passes.operations.elementwise.atom import Elementwise, RandomLeakyReLU, in_place_of
from passes.operations.elementwise.composites import (
    GatedLinear,
    InPlace,
    LearnedLeakyReLU,
    MantissaAndExponent,
)

_ATOMS: Mapping[str, type[Atom]] = {"relu": ReLUAtom, "sigmoid": SigmoidAtom, "tanh": TanhAtom}


def atom_of(function: str, **options: Any) -> Atom:
    """Return the atom of a function.

    Example:
        >>> atom_of("tanh"), atom_of("celu", alpha=2.0)
        (TanhAtom(), Elementwise(celu, alpha=2.0))

    """
    return _ATOMS[function]() if function in _ATOMS else Elementwise(function, **options)


def lower_call(function: str) -> Lowering:
    """Return what lowers a function of one tensor, whose other arguments are numbers or names."""

    def lower(varies: Varies, input: Any, **options: Any) -> Textbook | None:
        return (atom_of(function, **options), (input,)) if all(map(is_plain, options.values())) else None

    return lower


def lower_glu(varies: Varies, input: Any, dim: int = -1) -> Textbook:
    """Lower ``F.glu``."""
    return GatedLinear(dim), (input,)


def lower_frexp(varies: Varies, input: Any) -> Textbook:
    """Lower ``torch.frexp``."""
    return MantissaAndExponent(), (input,)


def lower_prelu(varies: Varies, input: Any, weight: Any) -> Textbook:
    """Lower ``F.prelu``."""
    return LearnedLeakyReLU(), (input, weight)


def lower_rrelu(
    varies: Varies, input: Any, lower: Any = 1 / 8, upper: Any = 1 / 3, training: Any = False
) -> Textbook | None:
    """Lower ``F.rrelu`` unless it draws random numbers."""
    if training or not (is_plain(lower) and is_plain(upper)):
        return None
    return Elementwise("leaky_relu", negative_slope=(lower + upper) / 2), (input,)


def build_module(function: str, settings: tuple[str, ...]) -> Build:
    """Return what builds the atom of a module that keeps the function's options under their names."""
    return partial(_build, function, settings)


def _build(function: str, settings: tuple[str, ...], module: Any) -> nn.Module:
    atom = atom_of(function, **{name: getattr(module, name) for name in settings})
    if getattr(module, "inplace", False):
        return InPlace(atom)
    return in_place_of(module, atom) if isinstance(atom, Elementwise) else atom


def build_rrelu(module: Any) -> nn.Module:
    """Build the atom of ``nn.RReLU``."""
    atom = RandomLeakyReLU(module.lower, module.upper)
    return InPlace(atom) if module.inplace else atom


def build_glu(module: Any) -> nn.Module:
    """Build ``nn.GLU`` of atoms."""
    return GatedLinear(module.dim)
