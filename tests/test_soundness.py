"""Models that once got a wrong number, or a damaged original, without a word."""

from __future__ import annotations

import collections
import cProfile
import dataclasses
import functools
import gc
import random
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from passes.errors import DeclinedError, PassError
from passes.stand_in import StandIn
from rewriter import RewriteError, decompose, diagnose, unroll
from tests.support import gallery
from tests.support.compare import assert_close, assert_same_model
from tests.support.watching import NoFusedKernels, snapshot


def gru() -> nn.GRU:
    return nn.GRU(3, 3, batch_first=True)


class SpatialDropout(nn.Dropout2d):
    """A subclass of one of torch's layers that reads ``training`` in torch's code."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)


def test_subclass_of_a_torch_layer_follows_the_mode() -> None:
    model = nn.Sequential(SpatialDropout(0.5), gru())
    rewritten = decompose(model)
    x = torch.randn(2, 5, 3)
    assert not torch.equal(rewritten(x)[0], rewritten(x)[0])
    assert_close(rewritten.eval()(x)[0], model.eval()(x)[0], 1e-6, "output")


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g = gru()
        self.memory: Any = {"h": None, "n": 0}
        self.h: Tensor | None = None


class DictState(Base):
    def forward(self, x: Tensor) -> Tensor:
        out, h = self.g(x, self.memory["h"])
        self.memory["h"] = h.detach()
        return out


class Counter(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.memory["n"] += 1
        return self.g(x)[0] * self.memory["n"]


class Resettable(Base):
    """Reads a state that only another method assigns."""

    def remember(self, h: Tensor) -> None:
        self.h = h

    def forward(self, x: Tensor) -> Tensor:
        return self.g(x)[0] if self.h is None else self.g(x, self.h)[0]


@pytest.mark.parametrize("make", [DictState, Counter])
@pytest.mark.parametrize("flat", [False, True])
def test_state_in_containers_lives_on(make: type[Base], flat: bool) -> None:
    model = make()
    x = torch.randn(2, 4, 3)
    rewritten = decompose(model, x if flat else None)
    assert model.memory == {"h": None, "n": 0}
    for _ in range(3):
        assert_close(rewritten(x), model(x), 1e-6, "output")


def test_state_that_another_method_sets() -> None:
    model = Resettable()
    rewritten = decompose(model)
    x, h = torch.randn(2, 4, 3), torch.randn(1, 2, 3)
    for each in (model, rewritten):
        each.remember(h)
    assert_close(rewritten(x), model(x), 1e-6, "output")


@dataclasses.dataclass
class Batch:
    x: Tensor
    h0: Tensor | None = None


class Learned(Base):
    def __init__(self) -> None:
        super().__init__()
        self.h0 = nn.Parameter(torch.randn(1, 1, 3))

    def start(self, x: Tensor) -> Tensor:
        return self.h0.expand(1, x.shape[0], 3).contiguous()


class ByField(Learned):
    def forward(self, b: Batch) -> Tensor:
        h = self.start(b.x) if b.h0 is None else b.h0
        return self.g(b.x, h)[0]


class ByKey(Learned):
    def forward(self, b: dict[str, Tensor]) -> Tensor:
        if b.get("h0") is None:
            return self.g(b["x"], self.start(b["x"]))[0]
        return self.g(b["x"], b["h0"])[0]


class ByWalrus(Learned):
    def forward(self, b: dict[str, Tensor]) -> Tensor:
        if (h := b.get("h0")) is None:
            h = self.start(b["x"])
        return self.g(b["x"], h)[0]


def test_none_tests_of_any_form() -> None:
    x, h = torch.randn(2, 4, 3), torch.randn(1, 2, 3)
    for model, absent, given in (
        (ByField(), Batch(x), Batch(x, h)),
        (ByKey(), {"x": x}, {"x": x, "h0": h}),
        (ByWalrus(), {"x": x}, {"x": x, "h0": h}),
    ):
        rewritten = decompose(model)
        for argument in (absent, given):
            assert_close(rewritten(argument), model(argument), 1e-6, type(model).__name__)


class PythonRandom(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.g(x if random.random() < 0.5 else -x)[0]


class NumpyRandom(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.g(x * float(np.random.rand()))[0]


@pytest.mark.parametrize("make", [PythonRandom, NumpyRandom])
@pytest.mark.parametrize("flat", [False, True])
def test_every_generator_is_left_alone_and_followed(make: type[Base], flat: bool) -> None:
    model = make()
    x = torch.randn(2, 4, 3)
    random.seed(3)
    np.random.seed(3)
    rewritten = decompose(model, x if flat else None)
    got = [rewritten(x) for _ in range(6)]
    random.seed(3)
    np.random.seed(3)
    for k, each in enumerate(got):
        assert_close(each, model(x), 1e-6, f"draw {k}")


class Calls(Base):
    def __call__(self, x: Tensor) -> Tensor:
        return 10 * super().__call__(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.g(x)[0]


class Plain(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.g(x)[0]


class Autocast(Base):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x: Tensor) -> Tensor:
        return self.g(x)[0]


def patched() -> nn.Module:
    model = Plain()
    model.forward = types.MethodType(lambda self, x: 3 * self.g(x)[0], model)  # type: ignore[method-assign]
    return model


class Wrapper(nn.Module):
    """Passes every attribute of what it wraps on."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def forward(self, x: Tensor) -> Tensor:
        return 10 * self.module(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch's own, in torch.compile
@pytest.mark.parametrize(
    "make", [Calls, patched, Autocast, lambda: Wrapper(torch.compile(Plain(), backend="eager"))]
)
def test_what_surrounds_the_forward_is_kept(make: Callable[[], nn.Module]) -> None:
    model = make()
    x = torch.randn(2, 4, 3)
    got, expected = decompose(model)(x), model(x)
    assert got.dtype is expected.dtype
    assert_close(got, expected, 1e-2 if got.dtype is torch.bfloat16 else 1e-6, "output")


class Cache:
    h: Tensor | None = None

    def put(self, h: Tensor) -> None:
        self.h = h


class Caches(Base):
    def __init__(self) -> None:
        super().__init__()
        self.cache, self.recent = Cache(), collections.deque([torch.zeros(1)], maxlen=3)

    def forward(self, x: Tensor) -> Tensor:
        out, h = self.g(x)
        self.cache.put(h)
        self.recent.append(h)
        return out


@pytest.mark.parametrize("flat", [False, True])
def test_helper_objects_of_the_original_are_not_touched(flat: bool) -> None:
    model = Caches()
    x = torch.randn(2, 4, 3)
    rewritten = decompose(model, x if flat else None)
    assert model.cache.h is None
    assert len(model.recent) == 1
    rewritten(x)
    assert rewritten.report.islands


def test_example_inputs_are_not_changed() -> None:
    class Doubles(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.g(x.mul_(2))[0]

    x = torch.ones(2, 4, 3)
    decompose(Doubles(), x)
    assert torch.equal(x, torch.ones(2, 4, 3))


class Holder:
    layers: Any
    inner: Any


class Slots:
    __slots__ = ("layer",)


Pair = collections.namedtuple("Pair", ["layer", "other"])


def odd_places() -> dict[str, Callable[[nn.Module], Callable[[], nn.Module]]]:
    def helper(g: nn.Module) -> Any:
        holder = Holder()
        holder.inner = Holder()
        holder.inner.layers = [g]
        return holder

    def slots(g: nn.Module) -> Any:
        slot = Slots()
        slot.layer = g
        return slot

    return {
        "nested helper": lambda g: (helper(g), lambda p: p.inner.layers[0]),
        "closure": lambda g: ((lambda: g), lambda p: p()),
        "named tuple": lambda g: (Pair(g, 1), lambda p: p.layer),
        "deque": lambda g: (collections.deque([g]), lambda p: p[0]),
        "default dict": lambda g: (collections.defaultdict(list, a=[g]), lambda p: p["a"][0]),
        "weak reference": lambda g: (weakref.ref(g), lambda p: p()),
        "slots": lambda g: (slots(g), lambda p: p.layer),
        "partial": lambda g: (functools.partial(lambda layer: layer, g), lambda p: p()),
    }


class Odd(Base):
    def __init__(self, place: str) -> None:
        super().__init__()
        self.kept, self.get = odd_places()[place](self.g)

    def forward(self, x: Tensor) -> Tensor:
        return self.get(self.kept)(x)[0]


@pytest.mark.parametrize("place", odd_places())
def test_layers_in_odd_places_are_rewritten(place: str) -> None:
    model = Odd(place)
    x = torch.randn(2, 4, 3)
    rewritten = decompose(model)
    with NoFusedKernels():
        got = rewritten(x)
    assert_close(got, model(x), 1e-6, place)
    assert not isinstance(model.get(model.kept), StandIn)


class BoundMethod(Base):
    def __init__(self) -> None:
        super().__init__()
        self.encode = self.g.forward
        self.partial = functools.partial(self.g.forward)

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)[0] + self.partial(x)[0]


def test_bound_method_of_a_layer() -> None:
    model = BoundMethod()
    assert_same_model(model, decompose(model), torch.randn(2, 4, 3))


def kernel(x: Tensor, w: Tensor) -> Tensor:
    return torch.gru_cell(x, x, w, w)


class OutsideMethods(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(9, 3))

    def forward(self, x: Tensor) -> Tensor:
        return kernel(x, self.w)


class MadeLate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.GRU(3, 3, batch_first=True)(x)[0]


def test_kernels_that_no_layer_shows_are_refused() -> None:
    with pytest.raises(DeclinedError, match="its code calls torch's gru_cell"):
        decompose(OutsideMethods())
    with pytest.raises(RewriteError, match="runs torch's own gru in a layer that was not found"):
        decompose(MadeLate(), torch.randn(2, 4, 3))


class SortedPack(Base):
    def forward(self, packed: Any) -> Tensor:
        return pad_packed_sequence(self.g(packed)[0], batch_first=True)[0]


@pytest.mark.parametrize("sort", [True, False])
def test_packed_input_unpacked_inside(sort: bool) -> None:
    lengths = torch.tensor([4, 3, 1] if sort else [1, 4, 3])
    packed = pack_padded_sequence(torch.randn(3, 4, 3), lengths, batch_first=True, enforce_sorted=sort)
    model = SortedPack()
    assert_same_model(model, decompose(model), packed)
    assert_same_model(model, decompose(model, packed), packed)


def test_inference_mode_and_lazy_modules() -> None:
    model = Plain()
    x = torch.randn(2, 4, 3)
    with torch.inference_mode():
        rewritten = decompose(model, x)
    assert_same_model(model, rewritten, x)
    with pytest.raises(RewriteError, match=r"0\.weight has no shape yet"):
        decompose(nn.Sequential(nn.LazyLinear(3), gru()))


class TwoLengths(nn.Module):
    """One layer called by the graph, and by code that stays code, with another length."""

    def __init__(self) -> None:
        super().__init__()
        self.g = gru()
        self.branch = Branch(self.g)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(self.g(x)[0][:, :2])


class Branch(nn.Module):
    def __init__(self, g: nn.GRU) -> None:
        super().__init__()
        self.g = g

    def forward(self, x: Tensor) -> Tensor:
        return self.g(x)[0] if x.sum() < 1e9 else x


def test_graph_and_island_share_a_layer() -> None:
    model = TwoLengths()
    x = torch.randn(2, 5, 3)
    assert_same_model(model, decompose(model, x), x)


def test_what_is_decomposed_is_not_passed_off_as_something_else() -> None:
    fused = decompose(Plain())
    with pytest.raises(RewriteError, match="decomposed already, with fused gates"):
        decompose(fused, gates="split")
    with pytest.raises(RewriteError, match="unrolled for sequences of 5 steps already, asked for 7"):
        unroll(unroll(fused, length=5), length=7)


def test_unroll_declines_as_decompose_does() -> None:
    class Own(nn.GRU):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
            return input

    with pytest.raises(DeclinedError):
        unroll(nn.Sequential(Own(3, 4)), length=3)


def test_threads_and_profilers() -> None:
    call = nn.Module.__call__
    failures: list[BaseException] = []

    # Making a model draws random numbers, which another thread would take for its model's.
    models = [Plain() for _ in range(4)]

    def work(model: nn.Module) -> None:
        try:
            for _ in range(3):
                assert decompose(model, torch.zeros(1, 3, 3)).report.islands == {}
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert nn.Module.__call__ is call
    assert gc.isenabled()

    profile = cProfile.Profile()
    profile.enable()
    decompose(Plain())
    sorted([3, 1], key=work_after)
    profile.disable()
    assert any("work_after" in str(entry.code) for entry in profile.getstats())


def work_after(value: int) -> int:
    return -value


class Counts(Base):
    """Counts in a buffer and in a list, also while it is explained."""

    def __init__(self) -> None:
        super().__init__()
        self.n: Tensor
        self.register_buffer("n", torch.zeros(()))
        self.log: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.n.add_(1)
        self.log.append(1)
        return self.g(x)[0][:, -1]


def test_explanation_undoes_buffers_and_lists() -> None:
    import shap

    model = Counts()
    rewritten = decompose(model)
    before = snapshot(rewritten)
    shap.DeepExplainer(rewritten, torch.randn(3, 4, 3)).shap_values(torch.randn(2, 4, 3))
    assert rewritten.n == 0
    assert rewritten.log == []
    assert snapshot(rewritten)[1:] == before[1:]


def test_explanations_of_one_model_in_several_threads() -> None:
    import shap

    rewritten = decompose(nn.Sequential(Plain(), nn.Flatten(), nn.Linear(12, 2)))
    explainer = shap.DeepExplainer(rewritten, torch.randn(3, 4, 3))
    x = torch.randn(2, 4, 3)
    expected = explainer.shap_values(x)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(explainer.shap_values(x))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for each in results:
        np.testing.assert_allclose(each, expected, atol=1e-7)
    assert not any(module._forward_hooks or module._backward_hooks for module in rewritten.modules())


@pytest.mark.filterwarnings("ignore:.*does not require grad")
def test_differing_lengths_are_said_to_break_additivity() -> None:
    import shap

    from tests.support.recurrent_models import Packs

    x, background = torch.randn(2, 6, 3), torch.randn(3, 6, 3)
    x[:, 4:] = 0
    explainer = shap.DeepExplainer(decompose(Packs()), background)
    with pytest.warns(UserWarning, match=r"packing\.rnn: a sample and its reference differ in length"):
        explainer.shap_values(x, check_additivity=False)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_autocast_gives_the_dtypes_of_torch(kind: str) -> None:
    layer = getattr(nn, kind)(3, 4)
    x = torch.randn(2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for given in (False, True):
            h = torch.zeros(*((1, 4) if "Cell" not in kind else (2, 4)))
            state = ((h, h) if "LSTM" in kind else h) if given else None
            expected, got = layer(x, state), decompose(layer)(x, state)
            flat = [[t.dtype for t in torch.utils._pytree.tree_leaves(v)] for v in (expected, got)]
            assert flat[0] == flat[1]


class Faulty(nn.Module):
    """Meets, when it is traced, what only a fault of a pass could raise."""

    def forward(self, x: Tensor) -> Tensor:
        raise PassError("a fault of ours")


def test_a_fault_of_ours_is_not_taken_for_the_users_code() -> None:
    with pytest.raises(PassError, match="a fault of ours"):
        decompose(Faulty())


def test_a_fault_of_ours_is_not_taken_for_a_model_that_cannot_be_rewritten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def faulty(*_: object, **__: object) -> None:
        raise PassError("a fault of ours")

    monkeypatch.setattr("rewriter.diagnosis.advice.decompose", faulty)
    with pytest.raises(PassError, match="a fault of ours"):
        diagnose(gallery.ReadsLength(), torch.randn(2, 4, 3), torch.randn(3, 4, 3))
