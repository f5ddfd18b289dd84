"""The functions of the page's script, run by node: shares, CSV, colours, keys."""

from __future__ import annotations

import csv
import io
import itertools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewriter
from rewriter import DeepExplainer, html_report
from tests.rewriter.html.pages import NASTY, Classifier, Page, sequences

NODE = shutil.which("node")
SCRIPT = Path(rewriter.__file__).parent / "html/page.js"
pytestmark = [pytest.mark.skipif(NODE is None, reason="there is no node"), pytest.mark.unmeasured]


def run(program: str, **given: Any) -> Any:
    """Run a program in which the script is ``page``, and return what it returns."""
    whole = f"const page = require({json.dumps(str(SCRIPT))}), given = {json.dumps(given)};"
    whole += f"console.log(JSON.stringify((() => {{ {program} }})()))"
    done = subprocess.run(
        [NODE or "", "-e", whole], capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    explainer = DeepExplainer(Classifier().double(), sequences(5), output_names=["up", "down"])
    path = tmp_path_factory.mktemp("report") / "report.html"
    return Page(html_report(explainer, sequences(3), path, feature_names=NASTY).path).data


def test_csv_has_every_number_and_formulas_are_text(data: Any) -> None:
    text = run("return page.csvOf(given.data, given.data.samples)", data=data)
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    assert header == ["sample", "output", "prediction", "base", "input", "row", "feature", "value", "share"]
    assert len(rows) == 3 * 2 * 24
    expected = [each if each[0] != "=" else f"'{each}" for each in NASTY]
    assert [row[6] for row in rows[:4]] == expected
    assert rows[0][0:2] == ["sample 0", "up"]
    shares = np.array([float(row[8]) for row in rows]).reshape(3, 2, 24)
    assert np.array_equal(shares, [sample["inputs"][0]["values"] for sample in data["samples"]])
    values = np.array([float(row[7]) for row in rows]).reshape(3, 2, 24)
    assert np.array_equal(values[:, 1], [sample["inputs"][0]["data"] for sample in data["samples"]])


def test_waterfall_and_course_end_at_the_prediction(data: Any) -> None:
    program = """return given.data.samples.map((sample) => [
        page.waterfall(page.cellsOf(given.data, sample, 1), sample.base[1], sample.f[1], 5),
        page.courseOf(given.data.inputs[0], sample, 1, sample.base[1])])"""
    for sample, (parts, course) in zip(data["samples"], run(program, data=data), strict=True):
        values = np.array(sample["inputs"][0]["values"][1])
        assert len(parts) == 5
        largest = sorted(values, key=abs, reverse=True)
        assert [part["share"] for part in parts[:4]] == largest[:4]
        assert parts[4]["name"] == "20 others"
        assert parts[0]["from"] == sample["base"][1]
        assert all(a["to"] == b["from"] for a, b in itertools.pairwise(parts))
        assert parts[-1]["to"] == pytest.approx(sample["f"][1], abs=1e-7)
        sums = sample["base"][1] + np.cumsum(values.reshape(6, 4).sum(1))
        assert np.allclose(course, sums, rtol=0, atol=1e-12)


def test_what_goes_around_a_layer_is_a_part_of_its_own() -> None:
    cells = [{"name": "a", "value": 1, "share": 2}]
    parts = run("return page.waterfall(given.cells, 1, 5, 9)", cells=cells)
    assert [(part["name"], part["share"]) for part in parts] == [("a", 2), ("around the explained layer", 2)]


def test_colours_go_from_blue_by_the_ground_to_red() -> None:
    program = "return [[-2, 0], [0, 0], [2, 1], [1, 0], [null, 0]].map(([v, d]) => page.colourOf(v, 2, !!d))"
    low, none, high, half, unknown = run(program)
    assert low == [0, 139, 251]
    assert none == unknown == [255, 255, 255]
    assert high == [255, 0, 81]
    assert half == [255, 128, 168]


def test_keys_stay_in_the_map() -> None:
    keys = ["ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown", "Home", "End", "Tab"]
    found = run("return given.keys.map((key) => page.moved(key, 0, 0, 3, 2))", keys=keys)
    assert found == [[1, 0], [0, 0], [0, 0], [0, 1], [0, 0], [2, 0], None]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (1.23456, "1.235"), (-1e-9, "-1.00e-9"), (1234567, "1.23e+6"), (None, "\N{EN DASH}")],
)
def test_numbers_are_short(number: float | None, text: str) -> None:
    assert run("return page.textOf(given.number)", number=number) == text
