"""Every rule is held against an oracle that shares no code with it; one without fails here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from passes.operations import catalogue
from passes.operations.contract import Lowering, Textbook, Varies
from passes.operations.elementwise import records as elementwise
from passes.operations.elementwise.atom import Elementwise
from passes.operations.operation import nonlinear
from passes.operations.pairwise.atom import Pairwise
from passes.operations.pairwise.lowering import lower_of_number, lower_pair
from passes.operations.pairwise.records import PAIRS
from passes.operations.table import RULES, rule_of
from tests.support.oracles import functions, pairs
from tests.support.oracles.atoms import ATOMS, Oracle
from tests.support.oracles.built import Built, all_built, built_by, function_of

# Atoms that compute any function of one or two numbers by its name: each function has an oracle of its own.
BY_NAME: dict[type[nn.Module], set[str]] = {
    Elementwise: {function_of(each.name, each.options) for each in functions.FUNCTIONS},
    Pairwise: set(pairs.RESTATED),
}


def known(built: Iterable[Built], kind: type[nn.Module]) -> set[str]:
    """Return the functions of which there are records, or of which lowerings make atoms."""
    named = elementwise.FUNCTIONS if kind is Elementwise else PAIRS
    return {each.name for each in named} | {name for made, name in built if made is kind}


def without_oracle(rules: Iterable[type[nn.Module]], built: Iterable[Built]) -> list[str]:
    """Return what has a rule, but no oracle."""
    missing = [kind.__name__ for kind in rules if kind not in BY_NAME and not ATOMS.get(kind)]
    for kind, restated in BY_NAME.items():
        missing += [f"{kind.__name__}({name})" for name in sorted(known(built, kind) - restated)]
    return missing


def test_every_rule_has_an_oracle() -> None:
    assert without_oracle(RULES, all_built()) == []


def test_every_atom_of_a_function_is_of_a_type_that_is_looked_up() -> None:
    others = {kind.__name__ for kind, _ in all_built()} - {kind.__name__ for kind in BY_NAME}
    # Products, whose functions are all linear in each operand, have one rule; so have those that read values
    # off sorted elements, and those of matrices that follow a line.
    assert others == {"Bilinear", "MatrixFunction", "OrderStatistics"}


def test_a_rule_without_an_oracle_is_seen() -> None:
    class New(nn.Module):
        """An atom that somebody adds."""

    assert without_oracle([*RULES, New], all_built()) == ["New"]


def of_a_number(varies: Varies, input: Tensor, other: Any) -> Textbook:
    return Elementwise("nextafter", other=other), (input,)


@pytest.mark.parametrize(
    ("lower", "missing"),
    [
        (lower_pair("nextafter"), "Pairwise(nextafter)"),
        (lower_of_number("nextafter"), "Pairwise(nextafter)"),
        (of_a_number, "Elementwise(nextafter)"),
    ],
)
def test_a_lowering_to_a_function_without_an_oracle_is_seen(
    lower: Lowering, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = nonlinear("nextafter(input, other)", lower=lower)
    monkeypatch.setattr(catalogue, "_BY_KEY", {**catalogue._BY_KEY, "nextafter": planted})
    catalogue._found.cache_clear()
    try:
        built = built_by([planted])
    finally:
        monkeypatch.undo()
        catalogue._found.cache_clear()
    assert without_oracle(RULES, built) == [missing]


def test_no_oracle_is_left_over() -> None:
    assert set(ATOMS) | set(BY_NAME) == set(RULES)
    for kind, restated in BY_NAME.items():
        assert restated <= known(all_built(), kind)


def shares(oracle: Oracle, x: Tensor, x0: Tensor) -> Tensor:
    """Return what the rule gives each number of the operands, for each output."""
    atom = oracle.atom()
    sizes = [torch.Size(shape).numel() for shape in oracle.shapes]
    operands, operands0 = (
        tuple(part.view(1, *shape) for part, shape in zip(side.split(sizes), oracle.shapes, strict=True))
        for side in (x, x0)
    )
    y, y0 = atom(*operands), atom(*operands0)
    count = y[0].numel()
    d = torch.eye(count, dtype=y.dtype).view(count, *y.shape)
    rule = rule_of(atom)
    assert rule is not None
    changes = tuple(a - a0 for a, a0 in zip(operands, operands0, strict=True))
    wide: tuple[tuple[Tensor, ...], ...] = operands, operands0, changes
    if rule.elementwise:
        # Whose operands are brought to the shape of the output before.
        wide = tuple(tuple(each.expand_as(y) for each in side) for side in wide)
    given = zip(rule.pull(wide[0], wide[1], y, y0, d), wide[2], changes, strict=True)
    return torch.cat([(m * w).sum_to_size(count, *c.shape).flatten(1) for m, w, c in given], 1)


def test_atoms_can_be_read_in_a_dump() -> None:
    for kind, oracles in ATOMS.items():
        for oracle in oracles:
            atom = oracle.atom()
            shown = repr(atom)
            assert shown.startswith(f"{kind.__name__}(")
            for key, value in vars(atom).items():
                # Atoms never write in place.
                if isinstance(value, int | float | str) and key not in ("training", "inplace"):
                    assert str(value) in shown, (key, shown)


@pytest.mark.parametrize(
    "oracle",
    [
        pytest.param(each, id=f"{kind.__name__} {k}")
        for kind, own in ATOMS.items()
        for k, each in enumerate(own)
    ],
)
def test_is_as_restated(oracle: Oracle) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        x, x0 = 2 * torch.randn(
            2, sum(torch.Size(each).numel() for each in oracle.shapes), dtype=torch.float64
        )
        # One number that differs in nothing.
        x0[0] = x[0]
        x, x0 = oracle.domain(x), oracle.domain(x0)
        expected = torch.tensor(oracle.shares(x.tolist(), x0.tolist()), dtype=torch.float64)
        # Some ten operations on numbers of size 1 to 100.
        torch.testing.assert_close(shares(oracle, x, x0), expected, rtol=1e-12, atol=1e-12)
