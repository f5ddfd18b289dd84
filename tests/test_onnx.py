"""Export to ONNX: onnxruntime against the original module in torch, the refusals, and what is left behind."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import rewriter
from passes.errors import DeclinedError, RewriteError
from rewriter import export_onnx
from rewriter.onnx.check import check_model, check_operators, relative_error, run_torch
from rewriter.onnx.example import infer_batch_axes, read_example
from rewriter.onnx.export_onnx import ONNX_OPERATORS
from rewriter.onnx.graph import tidy

FORBIDDEN = {"LSTM", "GRU", "RNN", "Scan", "Loop", "If"}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


class EveryLayer(nn.Module):
    """All kinds and options side by side on one batch-first input."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True, dropout=0.5),
                nn.LSTM(3, 5, 2, bidirectional=True, batch_first=True, proj_size=2),
                nn.GRU(3, 4, 2, bidirectional=True, batch_first=True, bias=False),
                nn.RNN(3, 4, bidirectional=True, batch_first=True),
                nn.RNN(3, 4, nonlinearity="relu", batch_first=True),
            ]
        )
        self.time_first = nn.GRU(3, 4)

    def forward(self, x):
        return [layer(x) for layer in self.layers], self.time_first(x.transpose(0, 1))


class Cells(nn.Module):
    """Every cell in the user's own loop, with a branch that torch.fx cannot follow."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTMCell(3, 4)
        self.gru = nn.GRUCell(4, 4, bias=False)
        self.tanh = nn.RNNCell(4, 4)
        self.relu = nn.RNNCell(4, 2, nonlinearity="relu")

    def forward(self, x):
        state = g = t = r = None
        outputs = []
        for step in range(x.shape[1]):
            state = self.lstm(x[:, step], state)
            g = self.gru(state[0], g)
            t = self.tanh(g, t)
            r = self.relu(t, r)
            outputs.append(r)
        return torch.stack(outputs, 1), state


class Wrapped(nn.GRU):
    def forward(self, x, hx=None):
        self.flatten_parameters()
        return super().forward(2 * x, hx)


class Island(nn.Module):
    """What torch.fx does not follow: len, branches, keyword states, counters, mappings as outputs."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 4, 2, batch_first=True)
        self.gru = Wrapped(4, 4, batch_first=True)
        self.head = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, hx=None):
        assert isinstance(self.rnn, nn.LSTM)
        self.calls += 1
        if hx is None:
            hx = tuple(torch.zeros(self.rnn.num_layers, len(x), self.rnn.hidden_size) for _ in range(2))
        if not self.training and x.shape[1] > 2:
            x = x + 1
        out, state = self.rnn(x, hx=hx)
        out, _ = self.gru(out)
        return {"logits": self.head(out[:, -1]), "state": state}


class Around(nn.Module):
    """Embedding, attention, convolution, norms, chunks and two inputs around a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.encode = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.conv = nn.Conv1d(8, 16, 3, padding=1)
        self.norm = nn.BatchNorm1d(16)
        self.lstm = nn.LSTM(8, 8, batch_first=True, bidirectional=True)
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens, weight):
        x = self.encode(self.embed(tokens))
        a, b = self.norm(self.conv(x.transpose(1, 2))).chunk(2, 1)
        x, _ = self.lstm((a * b.sigmoid()).transpose(1, 2))
        x, attention = self.attend(x, x, x)
        return self.head(x.split(8, -1)[0]).log_softmax(-1) * weight[:, None, None], attention


def leaves(value):
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [leaf for each in values for leaf in leaves(each)]


def check_against_torch(path, model, *inputs, bound=1e-6):
    """Run the file and the original module on inputs that the export never saw."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    given = leaves(inputs)
    found = session.run(None, {name: each.numpy() for name, each in zip(names, given, strict=True)})
    modes = [module.training for module in model.modules()]
    model.eval()
    with torch.no_grad():
        expected = leaves(model(*inputs))
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    assert len(expected) == len(found)
    for a, b in zip(expected, found, strict=True):
        assert a.shape == b.shape
        assert np.abs(a.numpy() - b).max() <= bound * max(1.0, float(a.abs().max()))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_every_layer_kind_gives_what_torch_gives(tmp_path):
    model = EveryLayer()
    report = export_onnx(model, torch.randn(3, 5, 3), tmp_path / "m.onnx")
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(11, 5, 3))
    assert FORBIDDEN.isdisjoint(report.operators)
    assert sorted(report.errors) == [1, 3, 7]
    assert max(report.errors.values()) <= 1e-6


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_loops_take_any_length_in_both_directions(tmp_path):
    model = EveryLayer()
    report = export_onnx(model, torch.randn(3, 5, 3), tmp_path / "m.onnx", loops=True)
    assert report.inputs == {"x": ("batch", "time", 3)}
    assert report.operators["Scan"] == 16
    assert {"LSTM", "GRU", "RNN", "Loop", "If"}.isdisjoint(report.operators)
    for length in (1, 2, 17):
        check_against_torch(tmp_path / "m.onnx", model, torch.randn(4, length, 3))


def test_cells_in_a_users_loop(tmp_path):
    model = Cells()
    report = export_onnx(model, torch.randn(2, 6, 3), tmp_path / "m.onnx")
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(5, 6, 3))
    assert report.operators["Gemm"] == 6 * 8
    weights = [each.name for each in onnx.load(tmp_path / "m.onnx").graph.initializer]
    assert set(dict(model.named_parameters())) <= set(weights)


def test_a_model_that_fx_cannot_follow_is_exported_and_stays_as_it_is(tmp_path):
    model = Island().train()
    model.gru.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = set(vars(model))
    x = torch.randn(1, 6, 3)
    random = torch.get_rng_state()
    export_onnx(model, x, tmp_path / "m.onnx")
    assert torch.equal(random, torch.get_rng_state())
    assert model.training
    assert not model.gru.training
    assert set(vars(model)) == attributes
    assert type(model.rnn) is nn.LSTM
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(5, 6, 3))


def test_other_layers_around_and_tied_weights(tmp_path):
    model = Around()
    inputs = torch.randint(0, 20, (3, 5)), torch.rand(3)
    report = export_onnx(model, inputs, tmp_path / "m.onnx", output_names=["scores", "attention"])
    assert report.inputs == {"tokens": ("batch", 5), "weight": ("batch",)}
    assert report.outputs == {"scores": ("batch", 5, 20), "attention": ("batch", 5, 5)}
    check_against_torch(tmp_path / "m.onnx", model, torch.randint(0, 20, (6, 5)), torch.rand(6))
    shapes = [tuple(each.dims) for each in onnx.load(tmp_path / "m.onnx").graph.initializer]
    assert shapes.count((20, 8)) == 1
    assert shapes.count((8, 20)) == 0


class ReadsParameters(nn.Module):
    """Asks a layer and a cell for their parameters: for their device, as factories, and to compute with."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True, proj_size=4, bidirectional=True)
        self.cell = nn.GRUCell(8, 4)

    def forward(self, x):
        h = torch.zeros(2, x.shape[0], 4, device=self.lstm.weight_hh_l0.device)
        out, _ = self.lstm(x, (h, self.lstm.weight_hr_l0.new_zeros(2, x.shape[0], 5)))
        state = self.cell.weight_hh.new_zeros(x.shape[0], 4)
        for step in range(3):
            state = self.cell(out[:, step], state)
        return out * self.lstm.weight_hh_l0_reverse.norm(), state + self.cell.bias_hh[:4]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("gates", [None, "fused", "split"])
def test_a_model_may_read_the_parameters_of_its_layers(tmp_path, gates):
    model = ReadsParameters()
    exported = model if gates is None else rewriter.decompose(model, gates=gates)
    for loops in (False, True):
        export_onnx(exported, torch.randn(2, 5, 3), tmp_path / "m.onnx", loops=loops)
        check_against_torch(tmp_path / "m.onnx", model, torch.randn(4, 5, 3))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_projected_layer_with_its_states_as_inputs(tmp_path):
    model = nn.LSTM(3, 5, proj_size=2)
    states = torch.randn(1, 3, 2), torch.randn(1, 3, 5)
    report = export_onnx(
        model,
        (torch.randn(4, 3, 3), states),
        tmp_path / "m.onnx",
        input_names=["x", "h0", "c0"],
        output_names=["out", "h", "c"],
    )
    assert report.inputs == {"x": (4, "batch", 3), "h0": (1, "batch", 2), "c0": (1, "batch", 5)}
    assert report.outputs == {"out": (4, "batch", 2), "h": (1, "batch", 2), "c": (1, "batch", 5)}
    states = torch.randn(1, 8, 2), torch.randn(1, 8, 5)
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(4, 8, 3), states)


def test_float64_keyword_arguments_and_the_newest_opset(tmp_path):
    model = nn.GRU(3, 4, batch_first=True).double()
    inputs = {"hx": torch.randn(1, 2, 4).double(), "input": torch.randn(2, 7, 3).double()}
    report = export_onnx(model, inputs, tmp_path / "m.onnx", opset=24)
    assert (report.opset, list(report.inputs)) == (24, ["input", "hx"])
    x, h = torch.randn(5, 7, 3).double(), torch.randn(1, 5, 4).double()
    check_against_torch(tmp_path / "m.onnx", model, x, h, bound=1e-14)


@pytest.mark.parametrize("flat", [False, True])
def test_a_decomposed_model_is_exported_against_itself_and_its_original(tmp_path, flat):
    model = nn.Sequential()
    model.add_module("rnn", nn.RNN(3, 4, batch_first=True))
    x = torch.randn(2, 3, 3)
    export_onnx(rewriter.decompose(model, x if flat else None), x, tmp_path / "m.onnx")
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(5, 3, 3))


def test_weights_are_stored_once_whatever_the_length(tmp_path):
    model = nn.LSTM(8, 64, batch_first=True)
    weights = sum(each.numel() * 4 for each in model.parameters())
    sizes = {
        length: export_onnx(model, torch.randn(2, length, 8), tmp_path / "m.onnx").size for length in (2, 40)
    }
    assert sizes[2] < weights + 15_000
    assert (sizes[40] - sizes[2]) / 38 < 3_500
    proto = onnx.load(tmp_path / "m.onnx")
    names = [each.name for each in proto.graph.initializer]
    assert set(dict(model.named_parameters())) <= set(names)
    assert len(names) == len(set(names))
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)


def test_every_value_names_its_batch(tmp_path):
    export_onnx(nn.GRU(3, 4, batch_first=True), torch.randn(2, 5, 3), tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    shapes = {
        each.name: [dim.dim_param or dim.dim_value for dim in each.type.tensor_type.shape.dim]
        for each in (*graph.value_info, *graph.output)
    }
    assert {name for node in graph.node for name in node.output} <= shapes.keys()
    steps = {name: shape for name, shape in shapes.items() if ".t" in name}
    assert len(steps) > 50
    assert all("batch" in shape and 0 not in shape for shape in steps.values())


def test_the_report_prints_and_serialises(tmp_path):
    report = export_onnx(nn.RNN(3, 4), torch.randn(5, 2, 3), tmp_path / "m.onnx")
    assert report.size == (tmp_path / "m.onnx").stat().st_size
    assert json.loads(json.dumps(report.to_dict()))["operators"] == dict(report.operators)
    text = str(report)
    for part in ("m.onnx", "input (5, batch, 3)", "output_1 (1, batch, 4)", "5 Tanh", "batch of 5"):
        assert part in text
    assert (
        max(map(len, str(replace(report, path="", operators=dict.fromkeys(ONNX_OPERATORS, 1))).split("\n")))
        < 130
    )


def test_an_operator_outside_the_list_is_refused_and_the_old_file_kept(tmp_path):
    file = tmp_path / "m.onnx"
    file.write_bytes(b"old")
    model = nn.RNN(3, 4).train()
    with pytest.raises(
        RewriteError,
        match=r"not allowed: .*Tanh \(node .*t0.*operators=rewriter\.ONNX_OPERATORS \| \{.*'Tanh'",
    ):
        export_onnx(model, torch.randn(5, 2, 3), file, operators=ONNX_OPERATORS - {"Tanh"})
    assert file.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]
    assert model.training


def test_a_failed_comparison_leaves_nothing_behind(tmp_path):
    with pytest.raises(RewriteError, match=r"differ by .* for a batch of 1.*tolerance.*nothing was written"):
        export_onnx(nn.RNN(3, 4), torch.randn(5, 2, 3), tmp_path / "m.onnx", tolerance=-1.0)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    (tmp_path / "m.onnx").write_bytes(b"old")
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(RewriteError, match=r"cannot write .*disk full"):
        export_onnx(nn.RNN(3, 4), torch.randn(5, 2, 3), tmp_path / "m.onnx")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("m.onnx", b"old")]


def _proto(*nodes, functions=()):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    graph = helper.make_graph(list(nodes), "g", [value], [helper.make_tensor_value_info("y", 1, [2])])
    return helper.make_model(graph, functions=list(functions), opset_imports=[helper.make_opsetid("", 18)])


def test_operators_in_bodies_and_functions_are_found():
    inner = helper.make_graph([helper.make_node("LSTM", ["x"], ["h"], name="deep")], "b", [], [])
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    scan = helper.make_node("Scan", ["x"], ["y"], body=helper.make_graph([branch], "s", [], []))
    with pytest.raises(RewriteError, match=r"LSTM \(node deep\); a recurrent operator is never written"):
        check_operators(_proto(scan), {"LSTM", "Scan", "If"})
    function = helper.make_function(
        "d", "F", ["x"], ["y"], [helper.make_node("GRU", ["x"], ["y"])], [helper.make_opsetid("", 18)]
    )
    with pytest.raises(RewriteError, match=r"d::F \(node y\), GRU \(node y\)"):
        check_operators(_proto(helper.make_node("F", ["x"], ["y"], domain="d"), functions=[function]), set())


def test_the_list_holds_no_loops_and_nothing_recurrent():
    assert FORBIDDEN.isdisjoint(ONNX_OPERATORS)
    assert not [name for name in ONNX_OPERATORS if "Random" in name or "Sequence" in name]
    assert all(onnx.defs.has(name) for name in ONNX_OPERATORS)


def test_the_checker_is_asked():
    with pytest.raises(RewriteError, match=r"onnx\.checker refuses"):
        check_model(_proto(helper.make_node("Add", ["x"], ["y"])))


def test_relative_error_sees_shapes_types_and_what_is_not_finite():
    a = torch.tensor([1.0, torch.nan, 8.0])
    assert relative_error(a, a) == 0
    assert relative_error(a, torch.tensor([3.0, torch.nan, 8.0])) == 0.25
    assert relative_error(a, torch.tensor([1.0, 0.0, 8.0])) == torch.inf
    assert relative_error(torch.tensor([torch.inf]), torch.tensor([-torch.inf])) == torch.inf
    assert relative_error(torch.tensor([torch.inf]), torch.tensor([torch.nan])) == torch.inf
    assert relative_error(a[1:2], a[1:2]) == torch.inf
    assert relative_error(a[:0], a[:0]) == 0
    assert relative_error(a, a.double()) == torch.inf
    assert relative_error(a, a[None]) == torch.inf


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x):
        return self.gru(x, torch.zeros(1, 2, 4))[0]


class FixedInGraph(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x):
        return self.gru(x)[0] * float(x.shape[0])


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)

    def forward(self, x):
        out = self.gru(x)[0]
        return out if out.sum() > 0 else -out


X = torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    ("model", "inputs", "options", "message"),
    [
        (lambda x: x, X, {}, r"expected a torch\.nn\.Module, got function"),
        (nn.GRU(3, 4), X, {"opset": 17}, r"opset: expected 18 to 24, got 17"),
        (nn.GRU(3, 4).bfloat16(), X.bfloat16(), {}, r"holds bfloat16.*model\.float\(\)"),
        (nn.GRU(3, 4), (X, X, X), {}, r"do not fit GRU\.forward: too many positional"),
        (nn.GRU(3, 4), 3, {}, r"expected tensors in example_inputs"),
        (nn.GRU(3, 4), nn.utils.rnn.pack_sequence([X[0]]), {}, r"hold a PackedSequence.*padded"),
        (nn.GRU(3, 4), X, {"input_names": ["a", "b"]}, r"input_names: expected 1 different name\(s\)"),
        (nn.GRU(3, 4), X, {"batch_axes": {"x": 0}}, r"batch_axes: expected an axis for some of input"),
        (nn.GRU(3, 4), X, {"batch_axes": {"input": 3}}, r"shape \(2, 5, 3\), and no axis 3"),
        (nn.GRU(3, 4), X[0], {}, r"no axis of the inputs \(input \(5, 3\)\) is a batch.*batch_axes"),
        (FixedBatch(), X, {}, r"batch dimension is frozen \(with the batch first: RuntimeError: Expected"),
        (nn.GRU(4, 4), X, {}, r"do not run through the model.*RuntimeError: input\.size"),
    ],
)
def test_refusals_before_the_export(tmp_path, model, inputs, options, message):
    with pytest.raises(RewriteError, match=message):
        export_onnx(model, inputs, tmp_path / "m.onnx", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Branching(), {"batch_axes": {"x": 0}}, r"torch\.export cannot follow the model.*values of tensors"),
        (FixedBatch(), {"batch_axes": {"x": 0}}, r"batch dimension is frozen.*fixes it at 2"),
        (nn.GRU(3, 4), {"batch_axes": {"input": 0}}, r"number of steps depends on the batch.*batch_axes"),
        (nn.GRU(3, 4), {"output_names": ["a"]}, r"output_names: expected 2 different name"),
        (nn.Linear(3, 4), {"loops": True}, r"length of the sequences is frozen.*loops=False"),
    ],
)
def test_refusals_during_the_export(tmp_path, model, options, message):
    with pytest.raises(RewriteError, match=message):
        export_onnx(model, X, tmp_path / "m.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_rewritten_is_declined(tmp_path):
    model = nn.utils.parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
    with pytest.raises(DeclinedError, match="parametrized"):
        export_onnx(model, X, tmp_path / "m.onnx")


def test_loops_with_a_length_that_is_also_the_number_of_features(tmp_path):
    model = nn.LSTM(6, 5, batch_first=True)
    report = export_onnx(model, torch.randn(3, 6, 6), tmp_path / "m.onnx", loops=True)
    assert report.inputs == {"input": ("batch", "time", 6)}
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(4, 9, 6))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(4, 3, batch_first=True)

    def forward(self, x, mask):
        return self.gru(x * mask[:, :, None])[0] * mask[:, :, None]


def test_loops_with_inputs_of_one_length(tmp_path):
    model = Masked()
    report = export_onnx(model, (torch.randn(3, 4, 4), torch.rand(3, 4)), tmp_path / "m.onnx", loops=True)
    assert report.inputs == {"x": ("batch", "time", 4), "mask": ("batch", "time")}
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(2, 9, 4), torch.rand(2, 9))


class Calls(nn.Module):
    """A GRU, and a function of its input and output that makes the model's output."""

    def __init__(self, end):
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)
        self.end = end

    def forward(self, x):
        return self.end(x, self.gru(x)[0])


def test_a_model_may_write_into_its_input(tmp_path):
    model = nn.Sequential(nn.ReLU(inplace=True), nn.GRU(3, 4, batch_first=True))
    example = torch.randn(2, 5, 3)
    before = example.clone()
    export_onnx(model, example, tmp_path / "m.onnx")
    assert torch.equal(example, before)
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(4, 5, 3))


def test_an_output_may_be_none(tmp_path):
    model = Calls(lambda _, out: (out, None))
    assert list(export_onnx(model, X, tmp_path / "m.onnx").outputs) == ["output"]


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda _, out: {"o": out, "n": 3}, r"expected tensors .*got int at output\['n'\]"),
        (lambda _, out: nn.functional.dropout(out, 0.5, True), "different outputs for the same input"),
        (lambda _, out: out * torch.nan, "no finite number for the example input"),
        (lambda _, out: (out, out / 0 * 0), "no finite number for the example input"),
        (lambda x, out: out / 0 if len(x) == 1 else out, "no finite number for the batch of 1|differ"),
    ],
)
def test_outputs_that_cannot_be_compared(tmp_path, end, message):
    with pytest.raises(RewriteError, match=message):
        export_onnx(Calls(end), X + 1, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_length_that_the_model_does_not_take_is_named(tmp_path):
    table = torch.randn(7, 4)
    model = Calls(lambda x, out: out + table[torch.arange(x.shape[1])])
    with pytest.raises(RewriteError, match="does not run a batch of 5, 4 steps longer: IndexError"):
        export_onnx(model, X, tmp_path / "m.onnx", loops=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_layer_is_declined_with_advice_that_fits(tmp_path):
    with pytest.raises(DeclinedError, match=r"scripted module(.|\n)*\nMend them, then export\.$") as caught:
        export_onnx(torch.jit.script(nn.LSTM(3, 4)), X, tmp_path / "m.onnx")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.declines) == (str(caught.value), caught.value.declines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_names": ["input", "b"]}, "output_names: expected names that no input has, got input"),
        ({"output_names": ["", "b"]}, "output_names: expected 2 different name"),
        ({"output_names": ["a", 3]}, "output_names: expected 2 different name"),
        ({"input_names": [3]}, "input_names: expected 1 different name"),
        ({"input_names": 3}, "input_names: expected 1 different name"),
        ({"input_names": ["output_0"]}, "output_names: expected names that no input has, got output_0"),
        ({"batch_axes": 1}, "batch_axes: expected an axis for some of input, got 1"),
        ({"batch_axes": {"input": "1"}}, "batch_axes: expected the number of an axis for input, got '1'"),
        ({"opset": 18.0}, r"opset: expected 18 to 24, got 18\.0"),
    ],
)
def test_arguments_of_wrong_types(tmp_path, options, message):
    with pytest.raises(RewriteError, match=message):
        export_onnx(nn.GRU(3, 4), X, tmp_path / "m.onnx", **options)


def test_a_parameter_may_have_any_name(tmp_path):
    model = nn.Sequential(nn.GRU(3, 4, batch_first=True))
    holder = Calls(lambda _, out: out * holder.axes_0)
    holder.axes_0 = nn.Parameter(torch.randn(4))
    holder.gru = model[0]
    export_onnx(holder, X + 1, tmp_path / "m.onnx")
    check_against_torch(tmp_path / "m.onnx", holder, torch.randn(4, 5, 3))


def test_a_graph_whose_shapes_do_not_fit_is_refused():
    with pytest.raises(RewriteError, match="does not find the shapes"):
        tidy(_proto(helper.make_node("Add", ["x"], ["y"], name="one operand")))


@pytest.mark.parametrize("path", [3, None, b"m.onnx", "a\0b"])
def test_paths_that_are_none(path):
    with pytest.raises(RewriteError, match=r"expected (the )?path"):
        export_onnx(nn.GRU(3, 4), X, path)


def test_a_link_is_followed_and_a_pipe_refused(tmp_path):
    file, link, pipe = tmp_path / "m.onnx", tmp_path / "link.onnx", tmp_path / "pipe.onnx"
    link.symlink_to(file)
    export_onnx(nn.RNN(3, 4), X, link)
    assert link.is_symlink()
    assert not file.is_symlink()
    assert onnx.load(file).graph.node
    os.mkfifo(pipe)
    with pytest.raises(RewriteError, match="expected the path of a regular file"):
        export_onnx(nn.RNN(3, 4), X, pipe)
    assert pipe.is_fifo()


def test_long_file_names(tmp_path):
    name = "m" * 250 + ".onnx"
    export_onnx(nn.RNN(3, 4), X, tmp_path / name)
    with pytest.raises(RewriteError, match="too long"):
        export_onnx(nn.RNN(3, 4), X, tmp_path / ("long" + name))
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_torch_says_nothing_while_it_exports(tmp_path):
    code = (
        "import torch, rewriter\n"
        "class Size(torch.nn.GRU):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x, x.new_zeros(1, len(x), 4))[0], None\n"
        "rewriter.export_onnx(Size(3, 4, batch_first=True), torch.ones(2, 5, 3), 'm.onnx')"
    )
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("", "")


def test_bad_paths(tmp_path):
    with pytest.raises(RewriteError, match="make the folder first"):
        export_onnx(nn.GRU(3, 4), X, tmp_path / "missing" / "m.onnx")
    with pytest.raises(RewriteError, match="got the folder"):
        export_onnx(nn.GRU(3, 4), X, tmp_path)


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(RewriteError, match=rf"needs {missing}, .*pip install 'rnn-rewriter\[onnx\]'"):
        export_onnx(nn.GRU(3, 4), X, tmp_path / "m.onnx")


def test_import_rewriter_does_not_import_onnx():
    code = "import sys, rewriter; sys.exit(any(m.split('.')[0].startswith('onnx') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_batch_is_found_in_each_input():
    model = nn.LSTM(3, 2, batch_first=True)
    inputs = torch.randn(4, 4, 3), (torch.randn(1, 4, 2), torch.randn(1, 4, 2))
    example = read_example(model, inputs)
    assert infer_batch_axes(lambda each: run_torch(model, each), example) == (0, 1, 1)
    weight = torch.eye(3)
    mix = read_example(nn.Bilinear(1, 1, 1), (torch.randn(3, 3), weight))
    assert infer_batch_axes(lambda each: [each.tensors[0] @ each.tensors[1].exp()], mix) == (0, None)
