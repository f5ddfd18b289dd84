"""Names, sizes and reports of an exported model."""

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper
from torch import nn

import rewriter
from passes.errors import RewriteError
from rewriter import export_onnx
from rewriter.onnx.check import check_model, check_operators, relative_error
from rewriter.onnx.export_onnx import ONNX_OPERATORS
from tests.support.exports import FORBIDDEN, _proto, check_against_torch


@pytest.mark.parametrize("flat", [False, True])
def test_a_decomposed_model_is_exported_against_itself_and_its_original(tmp_path: Path, flat: bool) -> None:
    model = nn.Sequential()
    model.add_module("rnn", nn.RNN(3, 4, batch_first=True))
    x = torch.randn(2, 3, 3)
    export_onnx(rewriter.decompose(model, x if flat else None), x, tmp_path / "m.onnx")
    check_against_torch(tmp_path / "m.onnx", model, torch.randn(5, 3, 3))


def test_weights_are_stored_once_whatever_the_length(tmp_path: Path) -> None:
    model = nn.LSTM(8, 64, batch_first=True)
    weights = sum(each.numel() * 4 for each in model.parameters())
    sizes = {
        length: export_onnx(model, torch.randn(2, length, 8), tmp_path / "m.onnx").size for length in (2, 40)
    }
    assert sizes[2] < weights + 15_000
    assert (sizes[40] - sizes[2]) / 38 < 3_500
    proto = onnx.load(tmp_path / "m.onnx")
    names = [each.name for each in proto.graph.initializer]
    assert set(dict(model.named_parameters())) == {name.removesuffix(".T") for name in names if "l0" in name}
    assert len(names) == len(set(names))
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)


def test_the_report_prints_and_serialises(tmp_path: Path) -> None:
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


def test_an_operator_outside_the_list_is_refused_and_the_old_file_kept(tmp_path: Path) -> None:
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


def test_a_failed_comparison_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RewriteError, match=r"differ by .* for a batch of 1.*tolerance.*nothing was written"):
        export_onnx(nn.RNN(3, 64), torch.randn(5, 2, 3), tmp_path / "m.onnx", tolerance=1e-12)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    (tmp_path / "m.onnx").write_bytes(b"old")
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(RewriteError, match=r"cannot write .*disk full"):
        export_onnx(nn.RNN(3, 4), torch.randn(5, 2, 3), tmp_path / "m.onnx")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("m.onnx", b"old")]


def test_operators_in_bodies_and_functions_are_found() -> None:
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


def test_the_list_holds_no_loops_and_nothing_recurrent() -> None:
    assert FORBIDDEN.isdisjoint(ONNX_OPERATORS)
    assert not [name for name in ONNX_OPERATORS if "Random" in name or "Sequence" in name]
    assert all(onnx.defs.has(name) for name in ONNX_OPERATORS)


def test_the_checker_is_asked() -> None:
    with pytest.raises(RewriteError, match=r"onnx\.checker refuses"):
        check_model(_proto(helper.make_node("Add", ["x"], ["y"])))


def test_relative_error_sees_shapes_types_and_what_is_not_finite() -> None:
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
