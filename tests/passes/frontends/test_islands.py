"""Models that torch.fx cannot follow as a whole are rewritten all the same."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from passes.stand_in import StandIn
from rewriter import decompose
from tests.support.compare import assert_close, assert_same_model, leaves, skeleton
from tests.support.models import gallery


def padded() -> torch.Tensor:
    x = torch.randn(4, 5, 3)
    x[0, 3:], x[2, 1:] = 0, 0
    return x


def packed() -> Any:
    return pack_padded_sequence(padded().transpose(0, 1), torch.tensor([3, 5, 1, 5]), enforce_sorted=False)


# Model, arguments, front-end of its recurrent layers.
CASES: dict[str, tuple[nn.Module, tuple[Any, ...], str]] = {
    "plain": (gallery.Classifier(), (padded(),), "fx"),
    "control flow on values": (gallery.ValueControlFlow(), (padded(),), "islands"),
    "packs": (gallery.Packing(), (padded(),), "islands"),
    "packs sorted": (
        gallery.Packing("GRU", sort=True, bidirectional=True, num_layers=2),
        (padded(),),
        "islands",
    ),
    "packs projected": (
        gallery.Packing("LSTM", bidirectional=True, proj_size=2, num_layers=2),
        (padded(),),
        "islands",
    ),
    "packed through": (gallery.PackedThrough(), (packed(),), "fx"),
    "len(x) and a cell in a loop": (gallery.ReadsLength(), (padded(),), "islands"),
    "dict": (gallery.DictInput(), ({"x": padded()},), "fx"),
    "dataclass": (gallery.DataclassInput(), (gallery.Batch(padded(), 2.0),), "fx"),
    "named tuple": (gallery.NamedOutput(), (padded(),), "fx"),
    "face": (gallery.ReadsFace(), (padded(),), "islands"),
    "subclass": (gallery.HoldsSubclass(), (padded(),), "fx"),
    "unregistered": (gallery.Unregistered(), (padded(),), "islands"),
    "two names": (gallery.TwoNames(), (padded(),), "fx"),
    "optional argument absent": (gallery.OptionalFlag(), (padded(),), "islands"),
    "optional argument given": (gallery.OptionalFlag(), (padded(), torch.rand(4, 5)), "islands"),
    "functional dropout": (gallery.FunctionalDropout(), (padded(),), "islands"),
    "random": (gallery.RandomStart(), (padded(),), "islands"),
    "no_grad": (gallery.NoGradEncoder(), (padded(),), "islands"),
    "free running": (gallery.TeacherForcing(), (padded(),), "islands"),
    "teacher forcing": (gallery.TeacherForcing(), (padded(), torch.randn(4, 3, 2)), "islands"),
}


# Example inputs tell what is None in these.
KNOWN = {
    *("face", "optional argument absent", "optional argument given"),
    *("free running", "teacher forcing"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("flat", [False, True], ids=["rolled", "flat"])
def test_equal_to_the_original(case: str, flat: bool) -> None:
    model, args, front_end = CASES[case]
    rewritten = decompose(model, args) if flat else decompose(model)
    expected_end = "fx" if flat and case in KNOWN else front_end
    assert {layer.front_end for layer in rewritten.report.layers} == {expected_end}
    assert_same_model(model, rewritten, *args)
    for other in (copy.deepcopy(rewritten), pickle.loads(pickle.dumps(rewritten))):
        torch.manual_seed(1)
        expected = rewritten(*args)
        torch.manual_seed(1)
        got = other(*args)
        assert skeleton(got) == skeleton(expected)
        for place, leaf in leaves(expected).items():
            # The same operations on the same numbers.
            assert_close(leaves(got)[place], leaf, 0, place)
        # What was loaded has no original.
        other.report.proven.notes.clear()
        assert other.report == rewritten.report


def test_state_kept_between_calls() -> None:
    model = gallery.Stateful()
    rewritten = decompose(model)
    assert model.state is None
    for _ in range(3):
        x = torch.randn(2, 4, 3)
        assert_close(rewritten(x), model(x), 1e-6, "output")


def test_training_mode_is_followed() -> None:
    rewritten = decompose(gallery.FunctionalDropout())
    x = torch.randn(2, 50, 3)
    assert (rewritten(x) == 0).any()
    assert not (rewritten.eval()(x) == 0).any()


def test_untraceable_part_becomes_one_node() -> None:
    model = nn.Sequential(gallery.Stateful(), nn.GRU(4, 2, batch_first=True))
    rewritten: Any = decompose(model)
    assert [layer.front_end for layer in rewritten.report.layers] == ["islands", "fx"]
    assert list(rewritten.report.islands) == ["0"]
    x = torch.randn(2, 4, 3)
    assert_close(rewritten(x)[0], model(x)[0], 1e-6, "output")


def test_face() -> None:
    original = nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2)
    parent = gallery.ReadsFace()
    parent.lstm = original
    lstm: Any = decompose(parent).lstm
    assert issubclass(type(lstm), nn.LSTM)
    assert issubclass(type(lstm), StandIn)
    for name in (
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
    ):
        assert getattr(lstm, name) == getattr(original, name)
    assert lstm.proj_size == 2
    assert lstm.flatten_parameters() is None
    assert lstm.weight_hr_l1_reverse is original.weight_hr_l1_reverse
    for ours, theirs in zip(lstm.all_weights, original.all_weights, strict=True):
        assert all(a is b for a, b in zip(ours, theirs, strict=True))
    assert lstm.extra_repr() == original.extra_repr()


def test_new_parameters_go_where_they_are_used() -> None:
    parent = gallery.ReadsFace()
    rewritten = decompose(parent)
    fresh = nn.Parameter(torch.randn_like(parent.lstm.get_parameter("weight_hh_l0")))
    rewritten.lstm.weight_hh_l0 = fresh
    assert rewritten.lstm.layer0.forward_steps.hidden.weight is fresh
    assert parent.lstm.weight_hh_l0 is not fresh
    with pytest.raises(RuntimeError, match=r"lstm\.weight_hh_l0: expected an nn\.Parameter"):
        rewritten.lstm.weight_hh_l0 = torch.zeros(1)


def test_subclass_reaches_the_rewritten_forward() -> None:
    model = gallery.Scaled(3, 4, num_layers=2)
    assert_same_model(model, decompose(model), torch.randn(5, 2, 3))
    holder = gallery.ReadsFace()
    holder.lstm = gallery.Scaled(3, 4, 2, batch_first=True, bidirectional=True)
    rewritten = decompose(holder)
    assert isinstance(rewritten.lstm, gallery.Scaled)
    assert_same_model(holder, rewritten, torch.randn(2, 5, 3))
    again = pickle.loads(pickle.dumps(rewritten))
    assert type(again.lstm) is type(rewritten.lstm)


class ByMethod(nn.Module):
    """Reaches its layer through a bound method, a partial and a helper object."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 3, batch_first=True)
        self.helper = Helper(self.gru)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.helper(self.gru(x)[0])


class Helper:
    """Not a module, but holds one."""

    def __init__(self, gru: nn.GRU) -> None:
        self.gru = gru

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(x)[0]


def test_layer_held_by_a_plain_object() -> None:
    model = ByMethod()
    rewritten = decompose(model)
    assert_same_model(model, rewritten, torch.randn(2, 4, 3))
    assert isinstance(model.helper.gru, nn.GRU)
    assert not issubclass(type(model.helper.gru), StandIn)


def test_hooks_fire_on_the_rewritten_layer() -> None:
    model = gallery.Classifier()
    seen: list[str] = []
    model.rnn.register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
    x = torch.randn(2, 5, 3)
    rewritten = decompose(model)
    assert seen == []
    assert_close(rewritten(x), model(x), 1e-6, "output")
    assert seen == ["LSTMStandIn", "LSTM"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch's own, in torch.compile
def test_compiled_wrapper_is_looked_through() -> None:
    model = gallery.Classifier()
    compiled: Any = torch.compile(model)
    rewritten = decompose(compiled)
    x = torch.randn(2, 5, 3)
    assert_close(rewritten(x), model(x), 1e-6, "output")
    assert rewritten.report.layers[0].name == "rnn"
