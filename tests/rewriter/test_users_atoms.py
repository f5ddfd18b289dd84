"""What is wrong with an atom of the user's own, or with its rule, is told with the module that it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import Atom, DeepExplainer, RewriteError, decompose, register_rule
from rewriter.adapters.pairs import bound_rules


class Net(nn.Module):
    def __init__(self, atom: Atom, call: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.lin, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.block = nn.ModuleDict({"act": atom})
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.call(self.block["act"], self.lin(x)))


class NetInCode(Net):
    """The same, where torch.fx cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) < 1e9 else x


def atom(forward: Callable[..., Any]) -> type[Atom]:
    return type("Own", (Atom,), {"forward": forward})


def tanh(self: Atom, x: Tensor) -> Tensor:
    return torch.tanh(x)


def chord(x: Any, x0: Any, y: Tensor, y0: Tensor) -> Tensor:
    return (y - y0) / (x[0] - x0[0])


def once(own: Any, x: Tensor) -> Any:
    return own(x)


# What the atom computes, its rule, how it is called, and what the error says of it.
WRONG: dict[str, tuple[Any, dict[str, Any], Any, tuple[str, ...]]] = {
    "keywords": (
        lambda self, x, scale=1.0: torch.tanh(scale * x),
        {},
        lambda own, x: own(x, scale=2.0),
        ("scale=", "by position", "__init__"),
    ),
    "operands by keyword": (tanh, {}, lambda own, x: own(x=x), ("x=", "by position")),
    "a tuple": (
        lambda self, x: (torch.tanh(x), x),
        {},
        lambda own, x: own(x)[0],
        ("returned tuple", "one tensor", "make an atom of each"),
    ),
    "a rule that raises": (
        tanh,
        {"multipliers": lambda own, x, x0, y, y0: x[3]},
        once,
        ("raises IndexError", "test_users_atoms.py:"),
    ),
    "a rule that gives NaN": (
        tanh,
        {"multipliers": lambda own, x, x0, y, y0: ((y - y) / (x[0] - x[0]),)},
        once,
        ("infinite numbers or NaN", "divide by a difference"),
    ),
    "a pull that gives infinities": (
        tanh,
        {"pull": lambda own, x, x0, y, y0, d: (d / 0,)},
        once,
        ("infinite numbers or NaN",),
    ),
    "a pull that would broadcast": (
        tanh,
        {"pull": lambda own, x, x0, y, y0, d: ((d * chord(x, x0, y, y0))[..., :1],)},
        once,
        ("expected a tuple of one tensor for each operand",),
    ),
    "multipliers that would broadcast": (
        tanh,
        {"multipliers": lambda own, x, x0, y, y0: (chord(x, x0, y, y0)[..., :1],)},
        once,
        ("expected a tuple of one tensor for each operand",),
    ),
    "another dtype": (
        tanh,
        {"multipliers": lambda own, x, x0, y, y0: (chord(x, x0, y, y0).float(),)},
        once,
        ("returned torch.float32, expected torch.float64",),
    ),
    "another dtype of a pull": (
        tanh,
        {"pull": lambda own, x, x0, y, y0, d: ((d * chord(x, x0, y, y0)).float(),)},
        once,
        ("returned torch.float32, expected torch.float64",),
    ),
}


@pytest.mark.parametrize("kind", [Net, NetInCode])
@pytest.mark.parametrize("name", WRONG)
def test_an_error_names_the_module(name: str, kind: type[Net]) -> None:
    forward, rule, call, said = WRONG[name]
    own = atom(forward)
    register_rule(own, **rule)
    model = kind(own(), call).double().eval()
    with pytest.raises(RewriteError) as told:
        DeepExplainer(model, torch.randn(5, 3).double()).shap_values(torch.randn(3, 3).double())
    assert str(told.value).startswith("block.act: ")
    for each in said:
        assert each in str(told.value)


@pytest.mark.parametrize("name", WRONG)
def test_an_error_names_the_module_under_hooks(name: str) -> None:
    forward, rule, call, said = WRONG[name]
    own = atom(forward)
    register_rule(own, **rule)
    model = decompose(Net(own(), call).double().eval(), prove=False)
    x = torch.randn(6, 3).double().requires_grad_()
    with pytest.raises(RewriteError) as told, bound_rules(model):
        model(x).sum().backward()
    assert "block.act: " in str(told.value)
    for each in said:
        assert each in str(told.value)


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("multipliers", lambda x, y: x),
        ("multipliers", lambda own, x, x0, y, y0, d: d),
        ("pull", lambda own, x, x0, y, y0: x),
    ],
)
def test_a_rule_that_does_not_take_what_it_is_given_is_refused_at_once(kind: str, rule: Any) -> None:
    with pytest.raises(
        RewriteError, match=rf"register_rule: {kind}= of Own is called with \(atom, x, x0, y, y0"
    ):
        register_rule(atom(tanh), **{kind: rule})


def test_a_rule_may_take_more_than_it_is_given_and_one_row_may_stand_for_all_pairs() -> None:
    def rule(own: Atom, x: Any, x0: Any, y: Tensor, *rest: Tensor, scale: float = 2.0) -> tuple[Tensor]:
        return (torch.full_like(y, scale)[:1],)

    own = atom(lambda self, x: 2 * x)
    register_rule(own, multipliers=rule)
    model = Net(own(), once).double().eval()
    x, background = torch.randn(3, 3).double(), torch.randn(5, 3).double()
    got = DeepExplainer(model, background).shap_values(x)
    change = (model(x) - model(background).mean(0)).detach()
    np.testing.assert_allclose(got.sum(1), change, rtol=0, atol=1e-14)
