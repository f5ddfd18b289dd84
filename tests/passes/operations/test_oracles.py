"""Every rule is held against an oracle that shares no code with it; one without fails here."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from passes.operations.elementwise import records as elementwise
from passes.operations.elementwise.atom import Elementwise
from passes.operations.pairwise.atom import Pairwise
from passes.operations.pairwise.records import PAIRS
from passes.operations.table import RULES, rule_of
from tests.support.oracles import functions, pairs
from tests.support.oracles.atoms import ATOMS, Oracle

# Atoms that compute any function of one or two numbers by its name: each function has an oracle of its own.
BY_NAME: dict[type[nn.Module], tuple[set[str], set[str]]] = {
    Elementwise: (
        {each.name for each in elementwise.FUNCTIONS} | {"pow", "powers", "floor_divide"},
        {each.name for each in functions.FUNCTIONS},
    ),
    Pairwise: ({each.name for each in PAIRS}, set(pairs.RESTATED)),
}


def without_oracle(rules: Iterable[type[nn.Module]]) -> list[str]:
    """Return what has a rule, but no oracle."""
    missing = [kind.__name__ for kind in rules if kind not in BY_NAME and not ATOMS.get(kind)]
    for kind, (known, restated) in BY_NAME.items():
        missing += [f"{kind.__name__}({name})" for name in sorted(known - restated)]
    return missing


def test_every_rule_has_an_oracle() -> None:
    assert without_oracle(RULES) == []


def test_a_rule_without_an_oracle_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class New(nn.Module):
        """An atom that somebody adds."""

    known = without_oracle(RULES)
    monkeypatch.setitem(BY_NAME, Pairwise, (BY_NAME[Pairwise][0] | {"beta"}, BY_NAME[Pairwise][1]))
    assert set(without_oracle([*RULES, New])) - set(known) == {"New", "Pairwise(beta)"}


def test_no_oracle_is_left_over() -> None:
    assert set(ATOMS) | set(BY_NAME) == set(RULES)
    for known, restated in BY_NAME.values():
        assert restated <= known


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
        expected = torch.tensor(oracle.shares(x.tolist(), x0.tolist()), dtype=torch.float64)
        # Some ten operations on numbers of size 1 to 100.
        torch.testing.assert_close(shares(oracle, x, x0), expected, rtol=1e-12, atol=1e-12)
