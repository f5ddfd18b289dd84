"""Every numbered example runs, in a folder of its own, and prints the figures it is about."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("[0-9]*.py"))

# The bounds of the library's promise: 1e-6 in float32, relative to max(1, max |output|). The logits of
# 02 are of the order of 10.
ADDITIVITY = {
    "01_lstm_cell_against_tensorflow": 1e-6,
    "02_lstm_classifier": 1e-5,
    "03_gru_forecaster": 1e-6,
}
# Of models that need no rewrite to be explained.
EACH = {"06_layers_of_your_own": 1e-6}

FINDINGS = {
    "02_lstm_classifier": "<- top row",
    "03_gru_forecaster": "<- top month",
    "08_pictures": "mathematics by: ",
    "10_in_the_browser": "static files only",
}
# What npm installs, which not everybody has.
ONNXRUNTIME_WEB = Path(__file__).parents[1] / "examples/browser/node_modules"


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def figure(printed: str, label: str) -> float:
    found = re.search(rf"{label}:?\s+([-+.e\d]+)", printed)
    assert found, printed
    return float(found[1])


# Each is a process of its own, with all that it imports: `make examples` runs the others, too.
ALWAYS = {"02_lstm_classifier", "06_layers_of_your_own"}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path.stem in ALWAYS else pytest.mark.slow, id=path.stem)
        for path in EXAMPLES
    ],
)
def test_example_runs(path: Path, tmp_path: Path) -> None:
    if path.stem == "10_in_the_browser" and not ONNXRUNTIME_WEB.exists():
        pytest.skip("run: npm ci --prefix examples/browser")
    printed = run(tmp_path, str(path))
    assert FINDINGS.get(path.stem, "") in printed
    assert printed.strip()
    if path.stem in ADDITIVITY:
        assert figure(printed, "decomposed") <= ADDITIVITY[path.stem]
        # What the rewrite is for: without it the values miss the output by a lot.
        assert figure(printed, "as it is") > 1e-2
    if path.stem == "09_keras" and importlib.util.find_spec("tensorflow") is not None:
        check_table_of_keras(printed)
    if path.stem in EACH:
        errors = re.findall(r"additivity error (\S+)", printed)
        assert len(errors) == 3
        assert max(map(float, errors)) <= EACH[path.stem]


def check_table_of_keras(printed: str) -> None:
    """Check that what adds up does, with the values of the cell by hand, and that the rest does not."""
    rows = {line[:36].strip(): line[36:].split() for line in printed.splitlines()[1:]}
    failed = rows.pop("Keras LSTM as it is, stock shap")
    assert failed[0].endswith("Error")
    wrong = rows.pop("nn.LSTM as it is, stock shap")
    assert float(wrong[0]) > 1e-2
    assert len(rows) == 5
    for error, gap, *_ in rows.values():
        assert float(error) <= 1e-6
        assert float(gap) <= 1e-5


def test_pictures_of_the_docs_are_small_and_shown() -> None:
    docs = EXAMPLES[0].parents[1] / "docs"
    page = "".join(
        (docs / "show_and_serve" / name).read_text(encoding="utf-8")
        for name in ("pictures.md", "html_report.md", "../guides/browser.md")
    )
    assert {*re.findall(r"\(\.\./pictures/(\w+\.png)\)", page)} == {
        each.name for each in (docs / "pictures").iterdir()
    }
    assert max(each.stat().st_size for each in (docs / "pictures").iterdir()) < 60 * 1024


def test_every_figure_belongs_to_an_example() -> None:
    assert {path.stem for path in EXAMPLES} >= ALWAYS
    assert ADDITIVITY.keys() | FINDINGS.keys() | EACH.keys() <= {path.stem for path in EXAMPLES}


@pytest.mark.slow
def test_page_without_npm_says_what_to_run(tmp_path: Path) -> None:
    path = shutil.copy(next(path for path in EXAMPLES if path.stem.startswith("10")), tmp_path)
    done = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert said.endswith(f"npm ci --prefix {tmp_path / 'browser'}")
    assert not (tmp_path / "out").exists()


def test_cell_without_tensorflow_says_what_is_left_out(tmp_path: Path) -> None:
    path = next(path for path in EXAMPLES if path.stem.startswith("01"))
    hidden = "import runpy, sys; sys.modules['tensorflow'] = None"
    printed = run(tmp_path, "-c", f"{hidden}; runpy.run_path({str(path)!r}, run_name='__main__')")
    assert "TensorFlow is not installed" in printed
    assert figure(printed, "decomposed") <= ADDITIVITY[path.stem]
