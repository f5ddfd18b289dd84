"""What users give comes in: replacements for modules, rules for atoms; what is wrong with either is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewriter import Atom, DeepExplainer, Report, RewriteError, check_equivalence, decompose, register_rule
from tests.support.stock import assert_same, quietly
from tests.support.watching import snapshot

Build = Callable[[Any], Any]


class Hidden(torch.autograd.Function):
    """``a * sigmoid(b)`` that no graph looks into."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a * torch.sigmoid(b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        s = torch.sigmoid(b)
        return grads[0] * s, grads[0] * a * s * (1 - s)


class Gated(nn.Module):
    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(size, 4), nn.Linear(size, 4)

    def forward(self, x: Tensor) -> Tensor:
        return Hidden.apply(self.a(x), self.b(x))


class Textbook(nn.Module):
    def __init__(self, a: nn.Linear, b: nn.Linear) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * torch.sigmoid(self.b(x))


class Gate(Atom):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a * torch.sigmoid(b)


class WithGate(Textbook):
    def __init__(self, a: nn.Linear, b: nn.Linear) -> None:
        super().__init__(a, b)
        self.gate = Gate()

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.a(x), self.b(x))


def two_players(atom: Any, x: Any, x0: Any, y: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
    s, s0 = torch.sigmoid(x[1]), torch.sigmoid(x0[1])
    slope = torch.where(x[1] == x0[1], s * (1 - s), (s - s0) / (x[1] - x0[1]))
    return (s + s0) / 2, (x[0] + x0[0]) / 2 * slope


def data(*shape: int, count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5 + k, *shape, generator=generator, dtype=torch.float64) for k in range(count)]


def gated() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Gated(), nn.Tanh(), nn.Linear(4, 2)).double().eval()


def as_textbook(module: Gated) -> nn.Module:
    return Textbook(module.a, module.b)


def test_values_are_those_of_the_textbooks_code() -> None:
    model = gated()
    written = nn.Sequential(Textbook(model[0].a, model[0].b), *model[1:]).eval()
    x, background = data(3)
    before = snapshot(model)
    decomposed = decompose(model, x, replacements={Gated: as_textbook})
    expected = DeepExplainer(written, background).shap_values(x)
    assert np.array_equal(DeepExplainer(decomposed, background).shap_values(x), expected)
    assert snapshot(model) == before
    report = Report.of(decomposed)
    assert [(each.name, each.kind, each.parameters) for each in report.layers] == [("0", "Gated", "shared")]
    assert report.proven
    assert not report.uncovered
    assert {id(each) for each in decomposed.parameters()} == {id(each) for each in model.parameters()}
    assert check_equivalence(model, decomposed, x)


def test_a_rule_of_a_users_atom_is_that_of_the_atoms_it_stands_for() -> None:
    register_rule(Gate, multipliers=two_players)
    model = gated()
    x, background = data(3)
    textbook = decompose(model, replacements={Gated: as_textbook})
    one_piece = decompose(model, replacements={Gated: lambda module: WithGate(module.a, module.b)})
    assert any(isinstance(each, Gate) for each in one_piece.modules())
    expected = DeepExplainer(textbook, background).shap_values(x)
    assert_same(DeepExplainer(one_piece, background).shap_values(x), expected, 1e-12)
    import shap

    assert_same(quietly(shap.DeepExplainer(one_piece, background), x), expected, 1e-12)


def test_an_atom_that_mixes_elements_takes_a_pull() -> None:
    class Total(Atom):
        """The product of both elements of a row."""

        def forward(self, x: Tensor) -> Tensor:
            return x.prod(-1, keepdim=True)

    register_rule(Total, pull=lambda atom, x, x0, y, y0, d: ((x[0] + x0[0]).flip(-1) / 2 * d,))
    model = nn.Sequential(nn.Linear(3, 2), Total()).double()
    x, background = data(3)
    values = DeepExplainer(model, background).shap_values(x)[..., 0]

    # The two-player game of both factors, restated in numpy.
    w = model[0].weight.detach().numpy()
    h, h0 = (model[0](each).detach().numpy() for each in (x, background))
    expected = sum(
        ((h[:, None] + h0)[..., 1 - j, None] / 2 * w[j] * (x[:, None] - background).numpy()).mean(1)
        for j in (0, 1)
    )
    assert np.allclose(values, expected, rtol=0, atol=1e-14)


def test_without_more_the_rule_is_the_slope_of_the_chord() -> None:
    class Swish(Atom):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

    register_rule(Swish)
    x, background = data(3)
    atom, torchs = (nn.Sequential(nn.Linear(3, 2), each).double() for each in (Swish(), nn.SiLU()))
    torchs[0] = atom[0]
    expected = DeepExplainer(torchs, background).shap_values(x)
    assert_same(DeepExplainer(atom, background).shap_values(x), expected, 1e-12)


@pytest.mark.parametrize("mixes", [lambda x: x.flip(-1), lambda x: x.cumsum(-1), lambda x: x.softmax(-1)])
def test_the_slope_of_the_chord_is_no_rule_for_what_mixes_elements(mixes: Callable[[Tensor], Tensor]) -> None:
    """The sums of such values add up, so that nothing else would say it."""

    class Mixes(Atom):
        def forward(self, x: Tensor) -> Tensor:
            return mixes(x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixes = Mixes()

        def forward(self, x: Tensor) -> Tensor:
            return self.mixes(x) * torch.tensor([1.0, 0.0, 0.0])

    register_rule(Mixes)
    with pytest.raises(RewriteError, match=r"Mixes is no function of each element .* multipliers= or pull="):
        DeepExplainer(Model(), torch.zeros(1, 3)).shap_values(torch.tensor([[1.0, 2.0, 3.0]]))


def test_replacements_serve_what_is_built_and_so_do_ours() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Gated()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).sum(1)

    class Built(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.lstm = nn.LSTM(4, 4, batch_first=True)
            with torch.no_grad():
                for each in self.lstm.parameters():
                    each.zero_()

        def forward(self, x: Tensor) -> Tensor:
            return (self.inner(x) + self.lstm(self.inner(x))[0]).sum(1)

    model = Outer().double()
    (x,) = data(4, 3, count=1)
    builds: dict[type[nn.Module], Build] = {
        Outer: lambda module: Built(module.inner).double(),
        Gated: as_textbook,
    }
    decomposed = decompose(model, x, replacements=builds)
    assert [each.name for each in Report.of(decomposed).layers] == ["", "inner", "lstm"]
    assert [each.parameters for each in Report.of(decomposed).layers] == ["shared", "shared", "shared"]
    assert torch.allclose(decomposed(x), model(x), rtol=0, atol=1e-14)


def test_what_is_copied_is_proven_with_the_weights_that_it_has() -> None:
    # The replacement has another tensor by the name that the original's weight has.
    class Transposed(nn.Module):
        def __init__(self, of: nn.Linear) -> None:
            super().__init__()
            self.weight = nn.Parameter(of.weight.detach().T.clone())
            self.bias = of.bias

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight + self.bias

    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()
    (x,) = data(3, count=1)
    decomposed = decompose(model, replacements={nn.Linear: Transposed})
    assert torch.allclose(decomposed(x), model(x), rtol=0, atol=1e-14)
    assert Report.of(decomposed).proven
    assert Report.of(decomposed).layers[0].parameters == "copied"
    assert Report.of(decomposed).parameter_names == {"0.weight": (), "0.bias": ("0.bias",)}


# Made here: what is built draws no random numbers then.
TALLER, WIDER, RECURRENT = (each.double() for each in (nn.Linear(3, 5), nn.Linear(7, 4), nn.LSTM(3, 4)))
WRONG: dict[str, tuple[Build, str]] = {
    "another function": (
        lambda m: nn.Sequential(m.a, nn.Tanh()),
        r"differs by .*, first in 0 .*for Gated",
    ),
    "another shape": (lambda m: TALLER, r"shapes cannot be multiplied.*builds for Gated"),
    "other sizes of inputs": (
        lambda m: WIDER,
        r"shapes cannot be multiplied.*builds for Gated",
    ),
    "other values in a tuple": (lambda m: RECURRENT, r"TypeError.*builds for Gated"),
    "none": (lambda m: None, r"replacements\[Gated\], asked for 0, returned None, expected an nn.Module"),
    "a tensor": (lambda m: torch.ones(1), r"returned tensor"),
    "itself": (lambda m: m, r"returned a Gated again"),
    "fails": (lambda m: m.missing, r"asked for 0, raised AttributeError.*missing.*test_replacements.py:\d+"),
}


@pytest.mark.parametrize(("build", "said"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("with_example", [True, False])
def test_what_is_built_wrong_is_an_error_that_says_so(build: Build, said: str, with_example: bool) -> None:
    model = gated()
    before = snapshot(model)
    (x,) = data(3, count=1)
    with pytest.raises(RewriteError, match=said):
        decompose(model, x if with_example else None, replacements={Gated: build})(x)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([Gated], "expected a mapping .* got a list"),
        ({"Gated": as_textbook}, "expected classes that derive from nn.Module as keys, got 'Gated'"),
        ({nn.Module: as_textbook}, "expected classes that derive from nn.Module as keys"),
        (
            {Gated: Textbook(nn.Linear(1, 1), nn.Linear(1, 1)).state_dict()},
            r"replacements\[Gated\]: .*function",
        ),
    ],
)
def test_what_is_no_replacement_is_refused(given: Any, said: str) -> None:
    with pytest.raises(RewriteError, match=said):
        decompose(gated(), replacements=given)


def test_what_is_hooked_to_a_module_is_not_lost() -> None:
    model = gated()
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(RewriteError, match=r"0 \(Gated\): has hooks"):
        decompose(model, replacements={Gated: as_textbook})
    (x,) = data(3, count=1)
    kept = decompose(model, replacements={Gated: as_textbook}, strict=False)
    assert torch.equal(kept(x), model(x))
    assert [each.name for each in Report.of(kept).declines] == ["0"]


def test_wrong_rules_are_named() -> None:
    class Cube(Atom):
        def forward(self, x: Tensor) -> Tensor:
            return x**3

    x, background = data(3)
    model = nn.Sequential(nn.Linear(3, 2), Cube()).double()
    with pytest.raises(RewriteError, match=r"1 \(Cube\): has no rule"):
        DeepExplainer(model, background).shap_values(x)
    register_rule(Cube, multipliers=lambda atom, x, x0, y, y0: (3 * x[0] ** 2,))
    with pytest.raises(RewriteError, match=r"The first operation without an exact rule is 1 \(Cube\)"):
        DeepExplainer(model, background).shap_values(x)
    for found in (torch.ones(1), (torch.ones(7),), (), (1.0,)):
        wrong: Build = lambda *_, found=found: found  # noqa: E731
        register_rule(Cube, multipliers=wrong)
        with pytest.raises(RewriteError, match=r"for Cube returned .* expected a tuple of one tensor"):
            DeepExplainer(model, background).shap_values(x)


def test_register_rule_refuses_what_is_no_atom_of_users() -> None:
    from passes.leaves import TanhAtom

    with pytest.raises(RewriteError, match="derives from rewriter\\.Atom"):
        register_rule(nn.Tanh)  # type: ignore[arg-type]
    with pytest.raises(RewriteError, match="TanhAtom has a rule in this package"):
        register_rule(TanhAtom)
    with pytest.raises(RewriteError, match="got both"):
        register_rule(Gate, multipliers=two_players, pull=two_players)
    with pytest.raises(RewriteError, match="expected a function as pull, got 3"):
        register_rule(Gate, pull=3)  # type: ignore[arg-type]
