"""What decompose returns, what it shares, and what it leaves alone."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn.utils import rnn

from passes.leaves import Atom, Mul
from passes.recurrent.recurrence import Recurrence
from rewriter import Report, decompose, unroll
from tests.support.compare import assert_close, assert_same_model
from tests.support.models import gallery
from tests.support.watching import NoFusedKernels, snapshot

KINDS = ("LSTM", "GRU", "RNN")


@pytest.mark.parametrize("flat", [False, True])
def test_original_is_unchanged(flat: bool) -> None:
    model = gallery.Classifier("LSTM", num_layers=2, dropout=0.5, bidirectional=True).eval()
    model.rnn.register_forward_hook(lambda *_: None)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.rnn.weight_ih_l0.requires_grad_(False)
    x = torch.randn(2, 5, 3) if flat else None
    before = snapshot(model)
    decompose(model, x)
    assert snapshot(model) == before


def test_original_is_unchanged_when_decompose_throws() -> None:
    model = gallery.Stateful()
    x = torch.randn(2, 4, 7)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="example_inputs do not run"):
        decompose(model, (1, 2, 3))
    with pytest.raises(RuntimeError, match="gru: expected input of shape"):
        decompose(model, x)
    assert snapshot(model) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flat", [False, True])
def test_parameters_are_shared(kind: str, flat: bool) -> None:
    model = gallery.Classifier(kind, num_layers=2, bidirectional=True)
    rewritten = decompose(model, torch.randn(2, 4, 3) if flat else None)
    assert {id(p) for p in rewritten.parameters()} == {id(p) for p in model.parameters()}
    names = dict(rewritten.named_parameters())
    originals = dict(model.named_parameters())
    for old, (new,) in rewritten.report.parameter_names.items():
        assert names[new] is originals[old]


def test_training_one_trains_the_other() -> None:
    model = gallery.Classifier("GRU")
    rewritten = decompose(model)
    x, y = torch.randn(16, 5, 3), torch.randint(2, (16,))
    optimizer = torch.optim.SGD(rewritten.parameters(), lr=0.5)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(rewritten(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert_close(rewritten(x), model(x), 1e-6, "output")


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    "model", [gallery.Classifier("LSTM"), gallery.ValueControlFlow()], ids=["fx", "islands"]
)
def test_state_dict_round_trip(model: nn.Module, flat: bool) -> None:
    x = torch.randn(2, 4, 3)
    rewritten = decompose(model, x if flat else None)
    file = io.BytesIO()
    torch.save(rewritten.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(rewritten)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert not torch.equal(other(x), rewritten(x))
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(x), rewritten(x))
    # Both levels keep their parameters at the same place.
    assert rewritten.state_dict().keys() == decompose(model).state_dict().keys()


def test_deepcopy_is_independent_and_moves() -> None:
    model = gallery.ValueControlFlow()
    for rewritten in (decompose(model), decompose(gallery.Classifier())):
        moved = copy.deepcopy(rewritten).to(torch.float64)
        x = torch.randn(2, 4, 3)
        assert_close(moved(x.double()).float(), rewritten(x), 1e-6, "output")
        assert all(p.dtype is torch.float32 for p in rewritten.parameters())


def test_moves_to_another_device() -> None:
    for model in (gallery.Classifier("LSTM", bidirectional=True), gallery.ValueControlFlow()):
        rewritten = copy.deepcopy(decompose(model)).to("meta")
        assert all(p.is_meta for p in rewritten.parameters())
    out = copy.deepcopy(decompose(gallery.Classifier())).to("meta")(torch.randn(2, 4, 3, device="meta"))
    assert out.device.type == "meta"


@pytest.mark.parametrize("flat", [False, True])
def test_decomposing_twice_changes_nothing(flat: bool) -> None:
    x = torch.randn(2, 4, 3)
    for model in (gallery.Classifier(), gallery.ReadsFace(), nn.GRU(3, 4, batch_first=True)):
        once = decompose(model, x if flat else None)
        twice = decompose(once)
        assert twice.report == once.report
        assert twice.state_dict().keys() == once.state_dict().keys()
        assert [(n, type(m)) for n, m in twice.named_modules()] == [
            (n, type(m)) for n, m in once.named_modules()
        ]
        if isinstance(once, fx.GraphModule):
            assert str(twice.graph) == str(once.graph)
        for a, b in zip(once.parameters(), twice.parameters(), strict=True):
            assert a is b


def test_rolled_takes_any_length_and_batch() -> None:
    model = gallery.Classifier("LSTM", bidirectional=True)
    rewritten = decompose(model)
    for batch, steps in ((1, 1), (3, 7), (2, 50)):
        assert_same_model(model, rewritten, torch.randn(batch, steps, 3))


def test_rolled_graph_has_one_linear_and_one_recurrence_per_direction() -> None:
    rewritten: Any = decompose(nn.LSTM(3, 4, num_layers=2, bidirectional=True))
    called = [rewritten.get_submodule(n.target) for n in rewritten.graph.nodes if n.op == "call_module"]
    assert sum(isinstance(module, nn.Linear) for module in called) == 4
    assert sum(isinstance(module, Recurrence) for module in called) == 4


def test_model_without_recurrent_layers() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    rewritten = decompose(model)
    assert rewritten is not model
    assert rewritten.report.layers == ()
    assert_same_model(model, rewritten, torch.randn(4, 3))


def test_report_is_text_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """There rich shows a table by itself, and the text has none."""
    report = decompose(nn.LSTM(3, 4)).report
    before = str(report)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert str(report) == before


def test_report() -> None:
    rewritten: Any = decompose(gallery.TwoNames())
    (layer,) = rewritten.report.layers
    assert (layer.name, layer.kind, layer.front_end, layer.level, layer.atoms) == (
        "first",
        "LSTM",
        "fx",
        "rolled",
        8,
    )
    flat = decompose(gallery.TwoNames(), torch.randn(2, 5, 3)).report.layers[0]
    # Eight atoms for each of five steps, in each of two calls.
    assert (flat.level, flat.atoms) == ("flat", 80)
    text = str(rewritten.report)
    for word in ("first", "LSTM", "fx", "rolled", "8", "shared"):
        assert word in text
    assert rewritten.report.to_dict()["layers"][0]["kind"] == "LSTM"
    code = str(decompose(gallery.ReadsFace()).report)
    assert "kept as code: (the model itself): ReadsFace.forward" in code
    assert "where decompose gets example inputs" in code


def test_model_with_a_report_of_its_own() -> None:
    class Reports(gallery.ValueControlFlow):
        def report(self) -> str:
            return "mine"

    rewritten: Any = decompose(Reports())
    assert rewritten.report() == "mine"
    assert Report.of(rewritten).layers[0].kind == "LSTM"
    assert Report.of(rewritten) is rewritten.rewrite_report
    with pytest.raises(RuntimeError, match="Linear was not made by decompose"):
        Report.of(nn.Linear(1, 1))


def test_graph_module_as_input() -> None:
    traced = fx.symbolic_trace(gallery.Classifier("GRU"))
    rewritten = decompose(traced)
    assert rewritten.report.layers[0].front_end == "fx"
    assert_same_model(traced, rewritten, torch.randn(2, 4, 3))


def test_the_guard_sees_fused_kernels() -> None:
    with NoFusedKernels(), pytest.raises(AssertionError, match="lstm"):
        nn.LSTM(3, 4)(torch.randn(5, 3))


@pytest.mark.parametrize("kind", [*KINDS, "LSTMCell", "GRUCell", "RNNCell"])
def test_no_recurrent_forward_and_no_fused_kernel_is_left(kind: str) -> None:
    layer = getattr(nn, kind)(3, 4)
    x = torch.randn(5, 3)
    for rewritten in (decompose(layer), decompose(layer, x), decompose(nn.ModuleDict({"a": layer}))):
        for module in rewritten.modules():
            forward = type(module).forward
            assert not (forward.__module__ == "torch.nn.modules.rnn" and "RNN" not in forward.__qualname__)
        if not isinstance(rewritten, nn.ModuleDict):
            with NoFusedKernels():
                rewritten(x)


def test_operator_level_has_no_recurrent_kernel() -> None:
    exported = torch.export.export(decompose(nn.LSTM(3, 4)), (torch.randn(5, 2, 3),))
    assert not [n for n in exported.graph.nodes if any(k in str(n.target) for k in ("lstm", "gru", "rnn."))]


@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights")  # of the original
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")  # torch's own
def test_agrees_with_the_decomposition_of_torch_export() -> None:
    for kind, options in (("LSTM", {"proj_size": 2}), ("GRU", {}), ("RNN", {})):
        layer = getattr(nn, kind)(3, 4, num_layers=2, bidirectional=True, **options).double()
        x = torch.randn(5, 2, 3, dtype=torch.float64)
        exported = torch.export.export(layer, (x,)).run_decompositions().module()
        assert_close(decompose(layer)(x)[0], exported(x)[0], 1e-12, kind)


def test_no_warning_of_ours() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rewritten = decompose(gallery.Classifier(), torch.randn(2, 4, 3))
        rewritten(torch.randn(2, 4, 3))


def test_atoms_of_two_calls_are_distinct_when_flat() -> None:
    flat = decompose(gallery.TwoNames(), torch.randn(2, 3, 3))
    targets = [n.target for n in flat.graph.nodes if n.op == "call_module"]
    atoms = [t for t in targets if isinstance(flat.get_submodule(t), Atom)]
    assert len(atoms) == len(set(atoms)) == 8 * 3 * 2
    assert len({id(flat.get_submodule(t)) for t in atoms}) == len(atoms)


def test_flat_names_say_layer_direction_step_and_gate() -> None:
    model = gallery.Classifier("LSTM", num_layers=2, bidirectional=True)
    flat = decompose(model, torch.randn(2, 4, 3))
    nodes = {node.name: node for node in flat.graph.nodes}
    node = nodes["rnn_layer1_reverse_steps_t3_forget_gate_mul"]
    assert isinstance(flat.get_submodule(node.target), Mul)
    for suffix in ("hidden_linear", "input_gate_sigmoid", "cell_gate_tanh", "add"):
        assert f"rnn_layer0_forward_steps_t2_{suffix}" in nodes
    for word in ("linear", "sigmoid", "tanh", "mul", "add"):
        assert word in str(flat.graph)
    again = pickle.loads(pickle.dumps(flat))
    assert [node.name for node in again.graph.nodes] == list(nodes)


def test_unroll_by_length_and_again() -> None:
    model = gallery.Classifier("GRU", bidirectional=True)
    rolled = decompose(model)
    x = torch.randn(2, 6, 3)
    flat = unroll(rolled, length=6)
    assert_same_model(model, flat, x)
    assert flat.report.layers[0].level == "flat"
    assert rolled.report.layers[0].level == "rolled"
    assert str(unroll(flat, length=6).graph) == str(flat.graph)
    with pytest.raises(ValueError, match="unrolled for sequences of 6 steps, got 5"):
        flat(x[:, :5])
    with pytest.raises(ValueError, match="unrolled for sequences of 6 steps, got 7"):
        flat(torch.randn(2, 7, 3))


@pytest.mark.parametrize("options", [{}, {"length": 3, "example_inputs": torch.zeros(1)}])
def test_unroll_needs_one_of_two(options: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="either example_inputs or length"):
        unroll(nn.GRU(3, 2), **options)


@pytest.mark.parametrize("length", [0, -1, True, 2.0])
def test_unroll_rejects_lengths(length: Any) -> None:
    with pytest.raises(RuntimeError, match="length of at least 1"):
        unroll(nn.GRU(3, 2), length=length)


def test_module_called_with_two_lengths_in_user_code() -> None:
    class Twice(gallery.ValueControlFlow):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + super().forward(x[:, :2])

    model = Twice()
    x = torch.randn(3, 5, 3)
    flat = decompose(model, x)
    assert_same_model(model, flat, x)
    with pytest.raises(ValueError, match="unrolled for sequences of 2, 5 steps, got 4"):
        flat(x[:, :4])


def test_packed_and_flat() -> None:
    model = gallery.Packing()
    x = torch.randn(3, 5, 3)
    x[1, 2:] = 0
    masked = decompose(model, x)
    full = torch.randn(3, 5, 3)
    assert_same_model(model, masked, full)
    with pytest.raises(ValueError, match="unrolled for sequences of equal length"):
        decompose(model, full)(x)


def test_the_cost_of_a_trace_grows_with_the_model_not_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[nn.Module] = []
    plain = nn.Module.named_parameters

    def counted(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        searches.append(self)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "named_parameters", counted)
    counts = []
    for depth in (2, 12):
        searches.clear()
        decompose(nn.Sequential(*(nn.LayerNorm(3) for _ in range(depth))))
        counts.append(len(searches))
    # Each layer reads its weight and its bias.
    assert counts[0] == counts[1]


class Packs(nn.Module):
    """Packs and unpacks, which a graph of it does by calling torch's functions."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 2, batch_first=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True)[0].sum(1)


def test_a_graph_that_packs_can_be_pickled() -> None:
    rewritten = decompose(Packs())
    x, lengths = torch.randn(3, 5, 3), torch.tensor([2, 5, 3])
    loaded = pickle.loads(pickle.dumps(rewritten))
    assert torch.equal(loaded(x, lengths), rewritten(x, lengths))
    assert [node.name for node in loaded.graph.nodes] == [node.name for node in rewritten.graph.nodes]
    # Loading leaves nothing behind in torch.fx.
    assert isinstance(decompose(Packs()), fx.GraphModule)
    assert isinstance(pickle.loads(pickle.dumps(loaded)), fx.GraphModule)


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x / np.sqrt(6), -1) * np.float64(2.0)


def test_numbers_of_numpy_are_plain_numbers() -> None:
    rewritten, x = decompose(Scaled()), torch.randn(2, 3)
    assert isinstance(rewritten, fx.GraphModule)
    assert_close(rewritten(x), Scaled()(x), 1e-6, "output")
    assert torch.equal(pickle.loads(pickle.dumps(rewritten))(x), rewritten(x))
