"""A certificate says what was checked, and what of it no longer holds."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import rewriter
from passes.errors import RewriteError
from rewriter import export_onnx, verify
from rewriter.equivalence.provenance import hash_of_weights
from rewriter.onnx.certificate.probe import describe_inputs, describe_output, difference, make_inputs


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, Any]:
    file = tmp_path_factory.mktemp("certified") / "m.onnx"
    model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2), nn.Tanh())
    return file, model, export_onnx(model, torch.tensor([[1, 4, 6], [0, 2, 3]]), file)


@pytest.fixture
def file(exported: tuple[Path, nn.Module, Any], tmp_path: Path) -> Path:
    for each in exported[0].parent.iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())
    return tmp_path / "m.onnx"


def test_it_holds_what_was_checked(exported: tuple[Path, nn.Module, Any]) -> None:
    path, model, report = exported
    assert sorted(each.name for each in path.parent.iterdir()) == ["m.onnx", "m.onnx.json"]
    stated = json.loads((path.parent / "m.onnx.json").read_text())
    assert {each["sizes"]: each["error"] for each in stated["checks"]} == report.errors
    assert stated["model"]["operators"] == report.operators
    assert stated["file"]["size"] == report.size == path.stat().st_size
    assert stated["weights_in_torch"] == hash_of_weights(model)
    assert {"python", "torch", "onnx", "onnxruntime"} <= stated["versions"].keys()
    assert len(stated["probes"]) == 3
    assert (path.parent / "m.onnx.json").stat().st_size < 20_000


def test_it_is_checked_without_torch(file: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import rewriter; found = rewriter.verify('m.onnx'); print(found); sys.exit(not found)"
    )
    root = Path(rewriter.__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=file.parent,
        env={"PYTHONPATH": str(root)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "the certificate holds" in ran.stdout
    assert ran.stdout.count("onnxruntime and torch differ by") == 3


def double(proto: Any) -> None:
    weight = proto.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(weight), weight.name))


def rename(proto: Any) -> None:
    proto.graph.input[0].name = "other"
    for node in proto.graph.node:
        node.input[:] = ["other" if each == "input" else each for each in node.input]


def rectify(proto: Any) -> None:
    next(node for node in proto.graph.node if node.op_type == "Tanh").op_type = "Relu"


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (double, ["hash of the file", "hash of the weights", "differ by"]),
        (rename, ["hash of the file", "inputs: the certificate says"]),
        (rectify, ["hash of the file", "operators: the certificate says", "differ by"]),
    ],
)
def test_another_model_does_not_hold(file: Path, change: Callable[[Any], None], broken: list[str]) -> None:
    proto = onnx.load(file)
    change(proto)
    onnx.save(proto, file)
    found = verify(file)
    assert not found
    for text in broken:
        assert any(text in each for each in found.problems)
    assert f"no: {found.problems[0]}" in str(found)


def test_half_a_file_does_not_hold(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    found = verify(file)
    assert any("size in bytes" in each for each in found.problems)
    assert any("onnx does not read the file" in each for each in found.problems)
    assert any("onnxruntime does not run the file" in each for each in found.problems)


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_what_is_not_installed_is_not_checked(
    file: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    find = rewriter.onnx.certificate.verify.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else find(name))
    found = verify(file)
    assert found
    assert [f"{missing} is not installed" in each for each in found.unchecked] == [True]


def test_what_is_no_certificate_is_refused_and_kept(file: Path, tmp_path: Path) -> None:
    with pytest.raises(RewriteError, match="expected the path of a file that export_onnx wrote"):
        verify(tmp_path / "none.onnx")
    beside = tmp_path / "m.onnx.json"
    for text in ("not json", "[]", "{}"):
        beside.write_text(text)
        with pytest.raises(RewriteError, match="is no certificate"):
            verify(file)
    with pytest.raises(RewriteError, match=r"m\.onnx\.json, where the certificate goes, is something else"):
        export_onnx(nn.Linear(3, 4), torch.ones(2, 3), file)
    assert beside.read_text() == "{}"
    beside.unlink()
    with pytest.raises(RewriteError, match="a certificate beside the file"):
        verify(file)


def test_probes_are_the_same_everywhere_and_see_differences() -> None:
    x = np.random.default_rng(0).normal(5, 2, (40, 3)).astype(np.float32)
    described = json.loads(json.dumps(describe_inputs({"x": x, "n": np.array([3, 1])})))
    made = make_inputs(described)
    assert made["n"].tolist() == [3, 1]
    assert made["x"].shape == (40, 3)
    assert abs(float(made["x"].mean()) - 5) < 1
    # The first number that NumPy's legacy generator draws, from its documentation: 1.764052...
    assert made["x"][0, 0] == pytest.approx(1.76405235 * x.std() + x.mean(), rel=1e-6)
    assert describe_inputs({"ids": np.arange(5000)}) is None
    kept = json.loads(json.dumps(describe_output(x)))
    assert difference(kept, x) == 0
    assert difference(kept, 2 * x) > 0.5
    assert difference(kept, np.full_like(x, np.nan)) == np.inf
    assert difference(kept, x[:-1]) == np.inf
    assert difference(kept, x.astype(np.float64)) == np.inf


@pytest.mark.parametrize(
    "damage",
    [
        lambda stated: stated["probes"][0].clear(),
        lambda stated: stated["probes"][0]["outputs"].pop(),
        lambda stated: stated["file"].pop("sha256"),
        lambda stated: stated["bounds"].clear(),
        lambda stated: stated.update(tolerance=1.0),
        lambda stated: stated["checks"][0].update(error=0.0),
    ],
)
def test_a_changed_certificate_does_not_hold(damage: Callable[[Any], Any], file: Path) -> None:
    beside = file.with_name("m.onnx.json")
    stated = json.loads(beside.read_text())
    damage(stated)
    beside.write_text(json.dumps(stated))
    found = verify(file)
    assert not found
    assert found.problems == ("the certificate was changed after it was written",)


def test_a_certificate_may_be_written_otherwise(file: Path) -> None:
    beside = file.with_name("m.onnx.json")
    beside.write_text(json.dumps(dict(reversed(json.loads(beside.read_text()).items()))))
    assert verify(file)
    beside.write_text("[" * 100_000)
    with pytest.raises(RewriteError, match="is no certificate"):
        verify(file)


@pytest.mark.parametrize("key", ["file", "model", "probes", "tolerance", "checks", "versions"])
def test_a_value_of_another_type_makes_no_certificate(key: str, file: Path) -> None:
    beside = file.with_name("m.onnx.json")
    beside.write_text(json.dumps(json.loads(beside.read_text()) | {key: 7}))
    with pytest.raises(RewriteError, match=f"is no certificate: {key} is 7"):
        verify(file)
