"""Every command does what its Python does, ends in the exit code it promises, and says errors in one line."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from rewriter import DeepExplainer
from rewriter.command_line.application import application
from tests.rewriter.html.pages import Page

SHOP = """
import torch
from torch import nn

class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 2)
    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])

class Other(Forecaster):
    def forward(self, x):
        return super().forward(x) * 1.001

class Sorts(nn.Module):
    def forward(self, x):
        return torch.bucketize(x, torch.tensor([0.0, 1.0])).float().sum((1, 2)) * x.sum((1, 2))

class Fails(nn.Module):
    def forward(self, x):
        raise ValueError("no such thing")

ready = Forecaster().eval()

double = Forecaster().double().eval()

def leaves():
    raise SystemExit(0)

def with_example():
    return Forecaster(), torch.randn(4, 5, 3)

def of(size):
    return Forecaster()

def text():
    return "a model"
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    np.save("x.npy", np.random.default_rng(0).normal(size=(20, 5, 3)).astype(np.float32))
    import shop

    yield shop
    sys.modules.pop("shop", None)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(application, list(arguments))


def test_check_holds_of_a_rewritten_model(shop: Any) -> None:
    done = run("check", "shop:Forecaster", "--shape", "4,5,3", "--markdown", "summary.md")
    assert done.exit_code == 0
    assert "are equal in float32 and float64" in done.stdout
    summary = Path("summary.md").read_text()
    assert summary.startswith("### `shop:Forecaster`: equal")
    assert "| float64 | output (1) |" in summary


def test_check_fails_where_models_differ(shop: Any) -> None:
    done = run(
        "check", "shop:Forecaster", "--against", "shop:Other", "-i", "x.npy", "--json", "--markdown", "s.md"
    )
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert not report["equal"]
    assert Path("s.md").read_text().startswith("### `shop:Forecaster`: **not equal**")


def test_check_unrolled(shop: Any) -> None:
    assert run("check", "shop:with_example", "--level", "unrolled").exit_code == 0


def test_inspect_tells_what_is_rewritten(shop: Any) -> None:
    done = run("inspect", "shop:ready", "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["layers"] == {"LSTM": 1, "Linear": 1}
    assert found["report"]["layers"][0]["kind"] == "LSTM"


def test_inspect_names_what_has_no_rule_with_its_line(shop: Any) -> None:
    done = run("inspect", "shop:Sorts", "--shape", "4,5,3")
    assert done.exit_code == 1
    assert "a mask, index or number that depends on the input" in done.stdout
    assert "shop.py:19" in done.stdout


def test_export_runs_in_onnxruntime(shop: Any) -> None:
    done = run("export", "shop:with_example", "model.onnx", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["operators"]["Tanh"] == 10
    x = np.load("x.npy")
    (found,) = onnxruntime.InferenceSession("model.onnx").run(None, {"x": x})
    expected = shop.Forecaster()(torch.from_numpy(x)).detach().numpy()
    # float32, five steps.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_an_explanation_is_exported(shop: Any) -> None:
    done = run("export-explainer", "shop:ready", "why.onnx", "-b", "x.npy", "--rows", "6", "--json")
    assert done.exit_code == 0, done.output
    x = np.load("x.npy")
    session = onnxruntime.InferenceSession("why.onnx")
    found = dict(zip([each.name for each in session.get_outputs()], session.run(None, {"x": x}), strict=True))
    expected = DeepExplainer(shop.ready, torch.from_numpy(x[:6])).shap_values(torch.from_numpy(x))
    np.testing.assert_allclose(found["shap_values"], expected, rtol=0, atol=1e-6)


def test_verify_finds_a_file_that_was_changed(shop: Any) -> None:
    assert run("export", "shop:with_example", "model.onnx").exit_code == 0
    assert run("verify", "model.onnx").exit_code == 0
    file = Path("model.onnx")
    file.write_bytes(file.read_bytes() + b"\0")
    done = run("verify", "model.onnx", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["problems"]


@pytest.mark.parametrize(
    ("options", "nearer"),
    [
        (("--blocks", "2", "--draws", "3"), {"blocks": 2, "draws": 3}),
        (("--cells", "shapley"), {"cells": "shapley"}),
    ],
)
def test_explain_comes_nearer_to_shapley_values(options: tuple[str, ...], nearer: Any, shop: Any) -> None:
    done = run("explain", "shop:ready", "x.npy", "-o", "v.npz", "--rows", "7", "-q", *options)
    assert done.exit_code == 0, done.output
    x = torch.from_numpy(np.load("x.npy"))
    explainer = DeepExplainer(shop.ready, x[:7])
    expected = explainer.shap_values(x, **nearer)
    assert np.abs(expected - explainer.shap_values(x)).max() > 1e-3
    np.testing.assert_allclose(np.load("v.npz")["values"], expected, rtol=0, atol=1e-6)


def test_explain_writes_what_the_explainer_gives(shop: Any) -> None:
    done = run("explain", "shop:ready", "x.npy", "--out", "values.npz", "--rows", "7", "--quiet")
    assert done.exit_code == 0, done.output
    found, x = np.load("values.npz"), torch.from_numpy(np.load("x.npy"))
    np.testing.assert_allclose(
        found["values"], DeepExplainer(shop.ready, x[:7]).shap_values(x), rtol=0, atol=1e-6
    )
    assert sorted(each.name for each in Path().glob("*values*")) == ["values.npz"]


def test_explain_writes_a_page_about_the_rows_that_it_could_explain(shop: Any) -> None:
    x = np.load("x.npy")
    x[1, 0, 0] = np.nan
    np.save("x.npy", x)
    arguments = (
        "explain",
        "shop:ready",
        "x.npy",
        "-o",
        "v.npz",
        "-q",
        "--html",
        "why.html",
        "--html-rows",
        "4",
    )
    done = run(*arguments)
    assert done.exit_code == 1
    assert "why.html: 3 samples, " in done.stdout
    data = Page(Path("why.html")).data
    assert [each["name"] for each in data["samples"]] == ["row 0", "row 2", "row 3"]
    values = np.load("v.npz")["values"]
    # Nine digits of each.
    assert np.allclose(data["samples"][1]["inputs"][0]["values"][0], values[2, ..., 0].ravel(), rtol=1e-8)
    x[:] = np.nan
    x[19] = 0
    np.save("x.npy", x)
    nowhere = run(*arguments[:4], "u.npz", "-q", "--html", "none/why.html")
    assert nowhere.exit_code == 2
    assert not Path("u.npz").exists()
    failed = run(*arguments[:4], "w.npz", *arguments[5:])
    assert failed.exit_code == 2
    assert "none of the first 4 rows was explained" in failed.stderr


def test_explain_goes_on_and_names_rows(shop: Any) -> None:
    x = np.load("x.npy")
    x[3, 1, 2] = np.nan
    np.save("x.npy", x)
    arguments = ("explain", "shop:ready", "x.npy", "-o", "out", "--rows-per-part", "8", "-q", "--json")
    done = run(*arguments)
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert [each["row"] for each in told["failed"]] == [3]
    Path("out/part-000001.parquet").unlink()
    assert json.loads(run(*arguments).stdout)["resumed"] == 2


def test_explain_keeps_the_names_of_columns(shop: Any) -> None:
    names = [f"f{k}" for k in range(15)]
    rows = np.random.default_rng(0).normal(size=(9, 15))
    np.savetxt("x.csv", rows, delimiter=",", header=",".join(names), comments="")
    assert run("explain", "shop:ready", "x.csv", "--reshape", "5,3", "-o", "v.parquet", "-q").exit_code == 0
    assert json.loads(pq.read_schema("v.parquet").metadata[b"feature_names"]) == names
    assert run("explain", "shop:ready", "x.csv", "--reshape", "5,3", "-o", "v.npz", "-q").exit_code == 0
    assert np.load("v.npz")["feature_names"].tolist() == names


@pytest.mark.filterwarnings("ignore:The tensor attributes self.rnn._flat_weights:UserWarning")
def test_a_program_of_torch_export(shop: Any) -> None:
    program = torch.export.export(shop.ready, (torch.randn(4, 5, 3),))
    torch.export.save(program, "model.pt2")
    done = run("check", "model.pt2")
    assert done.exit_code == 0, done.stderr


class Boom:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("it_ran"),)


def test_nothing_is_unpickled_unasked(shop: Any) -> None:
    torch.save(shop.ready, "model.pt")
    done = run("check", "model.pt", "-s", "4,5,3")
    assert done.exit_code == 2
    assert "a pickle runs whatever code it holds" in done.stderr
    assert run("check", "model.pt", "-s", "4,5,3", "--trust").exit_code == 0


@pytest.mark.filterwarnings("ignore:The tensor attributes self.rnn._flat_weights:UserWarning")
def test_a_pickle_in_a_program_does_not_run(shop: Any) -> None:
    program = torch.export.export(shop.ready, (torch.randn(4, 5, 3),))
    torch.export.save(program, "model.pt2")
    with zipfile.ZipFile("model.pt2") as plain, zipfile.ZipFile("evil.pt2", "w") as evil:
        for each in plain.infolist():
            examples = "example_inputs" in each.filename or each.filename.endswith(".pt")
            evil.writestr(each.filename, pickle.dumps(Boom()) if examples else plain.read(each))
    done = run("check", "evil.pt2", "-s", "4,5,3")
    assert done.exit_code == 2
    assert not Path("it_ran").exists()


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no model": (("check", "shop"), "no model; give package.module:factory"),
    "no module": (("check", "shopp:net"), "no module shopp"),
    "no attribute": (("check", "shop:net"), "shop has no net"),
    "no place": (("check", "shop:with_example", "--markdown", "no/summary.md"), "no/summary.md"),
    "an exit": (("check", "shop:leaves"), "shop:leaves ended with SystemExit(0); no model came of it"),
    "relative": (("inspect", ".shop:net"), "a relative name; give the package's whole name"),
    "arguments": (("check", "shop:of"), "takes size; name a function without arguments"),
    "no nn.Module": (("check", "shop:text"), "expected a torch.nn.Module, got str"),
    "no inputs": (("check", "shop:ready"), "no inputs to run the model on: --inputs FILE, --shape"),
    "shape": (("check", "shop:ready", "-s", "4,five"), "--shape 4,five: expected sizes such as 8,50,16"),
    "no file": (("check", "model.pt2"), "model.pt2: no such file"),
    "no program": (("check", "x.pt2"), "x.pt2: no exported program that can be read"),
    "other features": (("check", "shop:ready", "-s", "4,5,2"), "rnn: expected input"),
    "fails": (("check", "shop:Fails", "-s", "4,5,2"), "no such thing"),
    "unknown data": (("explain", "shop:ready", "x.txt", "-o", "o"), "x.txt: no such file"),
    "reshape": (("explain", "shop:ready", "x.npy", "-o", "o", "--reshape", "7"), "do not fit the shape (7,)"),
    "cut data": (("explain", "shop:ready", "cut.npy", "-o", "o"), "cut.npy: damaged"),
    "folder": (("export", "shop:with_example", "no/where.onnx"), "no/where.onnx"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_error_is_one_line(name: str, shop: Any) -> None:
    Path("x.pt2").write_bytes(b"no archive")
    Path("cut.npy").write_bytes(Path("x.npy").read_bytes()[:50])
    arguments, said = REFUSED[name]
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert done.stderr.startswith("rewriter: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not done.stdout


def test_a_model_of_another_dtype_gets_its_samples(shop: Any) -> None:
    np.save("whole.npy", np.arange(30).reshape(2, 5, 3))
    for model, data in (("shop:double", "x.npy"), ("shop:ready", "whole.npy")):
        assert run("check", model, "-i", data).exit_code == 0
        done = run("explain", model, data, "-o", "v.npz", "-q")
        assert done.exit_code == 0, done.stderr
        found = np.load("v.npz")
        # float32 sums of some hundred terms.
        change = found["outputs"] - found["base"]
        np.testing.assert_allclose(found["values"].sum((1, 2)), change, rtol=0, atol=1e-6)


def test_debug_shows_the_traceback(shop: Any) -> None:
    done = run("check", "shop:Fails", "-s", "4,5,2", "--debug")
    assert done.exit_code == 2
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("command", ["inspect", "check", "export", "export-explainer", "explain"])
def test_help_shows_examples(command: str) -> None:
    done = run(command, "--help")
    assert done.exit_code == 0
    assert f"rewriter {command} shop.models:forecaster" in done.stdout


def test_without_its_packages_it_says_how_to_get_them() -> None:
    hidden = "import sys; sys.modules['typer'] = None; from rewriter.command_line.entry import main; main()"
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'rnn-rewriter[cli]'" in done.stderr
    assert "Traceback" not in done.stderr
