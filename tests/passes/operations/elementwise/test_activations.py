"""Every elementwise function that users call: the same values, and additive in three explainers."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from passes.operations.catalogue import lowered
from passes.operations.elementwise.atom import Elementwise, in_place_of
from passes.operations.elementwise.records import MODULES
from rewriter import decompose
from tests.support.additive import TOLERANCE, assert_additive, assert_copies_compute_the_same

# Other tests run the same code; coverage would take as long again.
pytestmark = pytest.mark.unmeasured

Function = Callable[..., Tensor]
ANY, POSITIVE, INNER, ABOVE_ONE = "any", "positive", "inner", "above one"


def to_domain(x: Tensor, domain: str) -> Tensor:
    """Squeeze linear features into where a function is defined, by a function that has a rule."""
    return {
        ANY: lambda: 2 * x,
        POSITIVE: lambda: 0.1 + torch.sigmoid(x),
        INNER: lambda: torch.tanh(x) * 0.9,
        ABOVE_ONE: lambda: 1.1 + torch.sigmoid(x),
    }[domain]()


class Called(nn.Module):
    """A function between two linear layers, whose batch is in dimension 0."""

    def __init__(self, function: Function, domain: str = ANY) -> None:
        super().__init__()
        self.function = function
        self.domain = domain
        self.first = nn.Linear(3, 4)
        self.last = nn.LazyLinear(1)
        self.slopes = nn.ParameterList([torch.rand(4)] if function in WITH_WEIGHT else [])

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(to_domain(self.first(x), self.domain), *self.slopes))


def prelu_of_weight(x: Tensor, weight: Tensor) -> Tensor:
    return F.prelu(x, weight)


def clamp_of_weight(x: Tensor, weight: Tensor) -> Tensor:
    return torch.clamp(x, -weight, weight)


def clip_of_weight(x: Tensor, weight: Tensor) -> Tensor:
    return x.clip(max=weight).clamp_min(-weight)


def power_of_weight(x: Tensor, weight: Tensor) -> Tensor:
    base = weight.exp()
    return (
        torch.pow(x, weight) + torch.pow(base, x) + weight / x + torch.div(base, x) + torch.xlogy(weight, x)
    )


WITH_WEIGHT = (prelu_of_weight, clamp_of_weight, clip_of_weight, power_of_weight)
# As users write them. Those of one element each are also called as methods below.
WRITTEN: dict[str, tuple[Function, str]] = {
    "F.relu": (F.relu, ANY),
    "F.sigmoid": (F.sigmoid, ANY),
    "F.tanh": (F.tanh, ANY),
    "F.prelu": (prelu_of_weight, ANY),
    "torch.clamp with tensors": (clamp_of_weight, ANY),
    "clip with tensors": (clip_of_weight, ANY),
    "powers with tensors": (power_of_weight, POSITIVE),
    "F.leaky_relu": (lambda x: F.leaky_relu(x, 0.2), ANY),
    "F.elu": (lambda x: F.elu(x, alpha=1.5), ANY),
    "F.celu": (lambda x: F.celu(x, 0.7), ANY),
    "F.gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), ANY),
    "F.softplus": (lambda x: F.softplus(x, beta=2, threshold=3), ANY),
    "F.hardtanh": (lambda x: F.hardtanh(x, -0.5, 0.75), ANY),
    "F.hardshrink": (lambda x: F.hardshrink(x, 0.3), ANY),
    "F.softshrink": (lambda x: F.softshrink(x, 0.3), ANY),
    "F.threshold": (lambda x: F.threshold(x, 0.1, 0.2), ANY),
    "F.glu": (lambda x: F.glu(x, dim=1), ANY),
    "F.rrelu": (lambda x: F.rrelu(x, 0.1, 0.3), ANY),
    "F.relu in place": (lambda x: F.relu(x, inplace=True), ANY),
    "F.elu_": (lambda x: F.elu_(x), ANY),
    "relu_": (lambda x: x.relu_(), ANY),
    "torch.sigmoid_": (lambda x: torch.sigmoid_(x), ANY),
    "clamp": (lambda x: x.clamp(-0.5, 0.5), ANY),
    "clamp min=": (lambda x: torch.clamp(x, min=0.1), ANY),
    "clamp_max": (lambda x: torch.clamp_max(x, 0.2), ANY),
    "x ** 2": (lambda x: x**2, ANY),
    "x ** 3": (lambda x: x**3, ANY),
    "x ** -1": (lambda x: x**-1, POSITIVE),
    "x ** 0.5": (lambda x: x**0.5, POSITIVE),
    "x ** -0.5": (lambda x: x**-0.5, POSITIVE),
    "x ** 2.5": (lambda x: torch.pow(x, exponent=2.5), POSITIVE),
    "x ** 1": (lambda x: x**1 + x**0, ANY),
    "2 ** x": (lambda x: 2**x, ANY),
    "0.5 ** x": (lambda x: torch.pow(0.5, x), ANY),
    "float_power": (lambda x: torch.float_power(x, 2).to(x.dtype), ANY),
    "3 / x": (lambda x: 3 / x, POSITIVE),
    "x.size(0) / x": (lambda x: x.size(1) / x, POSITIVE),
    "x % 0.5": (lambda x: x % 0.5, ANY),
    "rounded quotient": (lambda x: torch.div(x, 0.5, rounding_mode="trunc"), ANY),
    "round decimals": (lambda x: torch.round(x, decimals=1), ANY),
    "nan_to_num": (lambda x: torch.nan_to_num(x, nan=1.0), ANY),
    "logit eps": (lambda x: torch.logit(x, eps=0.2), POSITIVE),
    "expit": (torch.special.expit, ANY),
    "special.log1p": (torch.special.log1p, POSITIVE),
    "special.entr": (torch.special.entr, POSITIVE),
    "special.ndtr": (torch.special.ndtr, ANY),
    "special.log_ndtr": (torch.special.log_ndtr, ANY),
    "special.xlog1py": (lambda x: torch.special.xlog1py(2.0, x), POSITIVE),
    "abs(x)": (abs, ANY),
    "-x": (operator.neg, ANY),
}
METHODS: dict[str, str] = {
    **dict.fromkeys(
        (
            *("abs", "absolute", "asinh", "arcsinh", "atan", "arctan", "ceil", "cos", "cosh", "erf", "erfc"),
            *("exp", "exp2", "expm1", "floor", "fix", "frac", "nan_to_num", "relu", "round", "sgn"),
            *("sigmoid", "sign", "sin", "sinc", "sinh", "square", "tan", "tanh", "trunc", "i0"),
        ),
        ANY,
    ),
    **dict.fromkeys(
        (
            *("digamma", "lgamma", "log", "log10", "log1p", "log2", "reciprocal", "rsqrt", "sqrt"),
            "hardshrink",
        ),
        POSITIVE,
    ),
    **dict.fromkeys(("acos", "arccos", "asin", "arcsin", "atanh", "arctanh", "erfinv"), INNER),
    **dict.fromkeys(("acosh", "arccosh"), ABOVE_ONE),
}
LAYERS: dict[str, nn.Module] = {
    "CELU": nn.CELU(0.7),
    "ELU": nn.ELU(1.5),
    "GELU": nn.GELU(),
    "GELU tanh": nn.GELU("tanh"),
    "GLU": nn.GLU(1),
    "Hardshrink": nn.Hardshrink(0.3),
    "Hardsigmoid": nn.Hardsigmoid(),
    "Hardswish": nn.Hardswish(),
    "Hardtanh": nn.Hardtanh(-0.5, 0.75),
    "LeakyReLU": nn.LeakyReLU(0.2),
    "LeakyReLU in place": nn.LeakyReLU(0.2, inplace=True),
    "LogSigmoid": nn.LogSigmoid(),
    "Mish": nn.Mish(),
    "PReLU": nn.PReLU(),
    "PReLU of channels": nn.PReLU(4),
    "RReLU": nn.RReLU(0.1, 0.3),
    "ReLU": nn.ReLU(),
    "ReLU in place": nn.ReLU(inplace=True),
    "ReLU6": nn.ReLU6(),
    "SELU": nn.SELU(),
    "SiLU": nn.SiLU(),
    "Sigmoid": nn.Sigmoid(),
    "Softplus": nn.Softplus(2, 3),
    "Softshrink": nn.Softshrink(0.3),
    "Softsign": nn.Softsign(),
    "Tanh": nn.Tanh(),
    "Tanhshrink": nn.Tanhshrink(),
    "Threshold": nn.Threshold(0.1, 0.2),
}


def assert_exact(model: nn.Module) -> None:
    """The same outputs and gradients, and additive; also after a copy and a pickle."""
    generator = torch.Generator().manual_seed(1)
    x, background = (torch.randn(n, 3, generator=generator) for n in (4, 5))
    # The last layer learns its size.
    model(x)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.uniform_(-0.7, 0.9, generator=generator)
    for dtype, tolerance in TOLERANCE.items():
        typed = copy.deepcopy(model).to(dtype).eval()
        exact = decompose(typed)
        assert not exact.report.islands
        assert exact.state_dict().keys() == typed.state_dict().keys()
        a, b = (x.to(dtype).requires_grad_() for _ in range(2))
        y, y0 = exact(a), typed(b)
        torch.testing.assert_close(y, y0, rtol=0, atol=tolerance * max(1.0, y0.abs().max().item()))
        (gradient,), (expected,) = (torch.autograd.grad(v.sum(), at) for v, at in ((y, a), (y0, b)))
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(gradient, expected, rtol=0, atol=tolerance * scale)
    assert_additive(model, x, background)
    assert_copies_compute_the_same(model.eval(), x)


@pytest.mark.parametrize("name", WRITTEN)
def test_function(name: str) -> None:
    assert_exact(Called(*WRITTEN[name]))


@pytest.mark.parametrize("name", METHODS)
def test_method_and_function(name: str) -> None:
    function = getattr(torch, name)
    assert_exact(Called(lambda x: function(x) + 0.5 * getattr(x, name)(), METHODS[name]))


def test_whole_quotient() -> None:
    # Torch has no gradient for it, but the slope of its chord is one.
    model = Called(lambda x: x // 0.5)
    x, background = torch.randn(4, 3), torch.randn(5, 3)
    assert torch.equal(model(x), decompose(model)(x))
    assert_additive(model, x, background)


FUNCTIONAL = (
    *(
        "celu",
        "elu",
        "gelu",
        "hardshrink",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "leaky_relu",
        "logsigmoid",
    ),
    *("mish", "relu6", "selu", "silu", "softplus", "softshrink", "softsign", "tanhshrink"),
)


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functional(name: str) -> None:
    assert_exact(Called(getattr(F, name)))


class Layered(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.layer = layer
        self.last = nn.LazyLinear(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.first(x)))


class Untraceable(Layered):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if h.dim() < 2:
            raise ValueError(h)
        return self.last(self.layer(h))


class ReadsAgain(Untraceable):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        y = self.layer(h)
        return self.last(y) + h.sum(1, keepdim=True) + (0 if h.dim() else 1)


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str) -> None:
    assert_exact(Layered(copy.deepcopy(LAYERS[name])))


def test_all_layers_are_tested() -> None:
    assert {type(layer) for layer in LAYERS.values()} == set(MODULES)


@pytest.mark.parametrize(
    "name", ["ReLU", "ReLU in place", "LeakyReLU in place", "GELU", "PReLU", "GLU", "RReLU"]
)
def test_layer_in_a_model_that_cannot_be_traced(name: str) -> None:
    model = Untraceable(copy.deepcopy(LAYERS[name]))
    x, background = torch.randn(4, 3), torch.randn(5, 3)
    model(x)
    exact = decompose(model)
    assert exact.report.islands
    torch.testing.assert_close(exact.eval()(x), model.eval()(x), rtol=0, atol=1e-6)
    assert_additive(model, x, background)
    assert_copies_compute_the_same(model, x)


def test_what_a_layer_wrote_is_read_again() -> None:
    model = ReadsAgain(nn.ReLU(inplace=True))
    x = torch.randn(4, 3)
    model(x)
    torch.testing.assert_close(decompose(model)(x), model(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in LAYERS if "in place" not in name and "GLU" not in name])
def test_face(name: str) -> None:
    layer = LAYERS[name]
    model = Untraceable(copy.deepcopy(layer))
    model(torch.ones(2, 3))
    became = decompose(model).layer
    settings = {key: value for key, value in vars(layer).items() if not key.startswith("_")}
    assert {key: getattr(became, key, None) for key in settings} == settings
    for each in (became, copy.deepcopy(became), pickle.loads(pickle.dumps(became))):
        assert isinstance(each, type(layer)) or isinstance(layer, nn.PReLU)


def test_parameters_are_shared() -> None:
    model = Layered(nn.PReLU(4))
    model(torch.ones(2, 3))
    exact = decompose(model)
    assert exact.get_parameter("layer.weight") is model.layer.weight


def test_random_slopes_stay_random_in_training() -> None:
    model = Layered(nn.RReLU(0.1, 0.9)).train()
    x = torch.randn(4, 3)
    model(x)
    exact = decompose(model)
    torch.manual_seed(3)
    y = exact(x)
    torch.manual_seed(3)
    assert torch.equal(y, model(x))
    assert not torch.equal(exact(x), y)


def test_in_place_functions_leave_the_input_to_the_model_alone() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x += 1
            return F.relu(x, inplace=True)

    x = torch.tensor([[-3.0, 2.0]])
    assert decompose(Writes())(x).tolist() == Writes()(x.clone()).tolist() == [[0.0, 3.0]]
    assert x.tolist() == [[-3.0, 2.0]]


@pytest.mark.parametrize(
    ("target", "args", "kwargs"),
    [
        (torch.div, ("x", 3), {}),
        (torch.xlogy, ("x", 3), {}),
        (F.relu, ("x",), {"inplace": True}),
        (F.rrelu, ("x",), {"training": True}),
        (torch.exp, ("x",), {"out": "w"}),
        (F.softplus, ("x", "x"), {}),
        (torch.copysign, ("w", "w"), {"out": "x"}),
    ],
)
def test_what_is_linear_random_or_in_place_is_left(
    target: Function, args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    graph = fx.Graph()
    nodes: dict[object, fx.Node] = {name: graph.placeholder(name) for name in "xw"}

    def varies(value: object) -> bool:
        return any(varies(each) for each in value) if isinstance(value, tuple) else value is nodes["x"]

    at = tuple(nodes.get(each, each) for each in args)
    assert lowered(target, varies, at, {key: nodes.get(each, each) for key, each in kwargs.items()}) is None


def test_atoms_of_functions_show_them() -> None:
    assert repr(Elementwise("elu", alpha=0.5)) == "Elementwise(elu, alpha=0.5)"
    assert repr(in_place_of(nn.ELU(0.5), Elementwise("elu", alpha=0.5))) == "Elementwise(elu, alpha=0.5)"
