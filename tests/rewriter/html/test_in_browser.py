"""The page in a real browser, from disk: read, paged through, pointed at, by keyboard, on a phone, at night.

``make browser`` runs it; Chromium comes in a package of npm.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewriter import DeepExplainer, html_report
from tests.rewriter.html.pages import NASTY, Classifier, Page, sequences

pytestmark = [pytest.mark.browser, pytest.mark.unmeasured]
VISIT = Path(__file__).parent / "browser/visit.mjs"
NAMES = [*"abc", NASTY[1]]


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Return what a browser saw, and what the page holds."""
    folder = tmp_path_factory.mktemp("browser")
    explainer = DeepExplainer(Classifier().double(), sequences(5), output_names=[NASTY[0], "down"])
    report = html_report(explainer, sequences(3), folder / "report.html", feature_names=NAMES, title=NASTY[1])
    done = subprocess.run(
        ["node", str(VISIT), str(report.path), str(folder)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), Page(report.path).data


def test_asks_no_network_and_runs_no_names(visited: Any) -> None:
    seen, _ = visited
    assert {each.split(":")[0] for each in seen["requests"]} <= {"file", "blob"}
    assert seen["errors"] == []
    assert seen["title"] == NASTY[1]


def test_shows_the_numbers(visited: Any) -> None:
    seen, data = visited
    first, k = data["samples"][0], data["first"]
    prediction, base, total = map(float, seen["first"])
    # Four digits are shown.
    assert prediction == pytest.approx(first["f"][k], rel=1e-3)
    assert base == pytest.approx(first["base"][k], rel=1e-3)
    assert total == pytest.approx(first["f"][k] - first["base"][k], rel=1e-3)
    shares = [float(share) for _, _, share in seen["waterfall"]]
    expected = sorted(data["samples"][1]["inputs"][0]["values"][1], key=abs, reverse=True)
    assert shares[:-1] == pytest.approx(expected[: len(shares) - 1], rel=1e-3)
    assert seen["rows"] == 24


def test_colours_of_the_map_are_the_shares(visited: Any) -> None:
    seen, data = visited
    assert seen["size"] == [6, 4]
    red, green, blue, _ = np.moveaxis(np.reshape(seen["pixel"], (4, 6, 4)), -1, 0)
    shares = np.reshape(data["samples"][1]["inputs"][0]["values"][data["first"]], (6, 4)).T
    assert ((red == 255) == (shares > -np.abs(shares).max() / 510)).all()
    assert np.unravel_index(green.argmin(), green.shape) == np.unravel_index(
        np.where(shares > 0, shares, 0).argmax(), shares.shape
    )
    assert (blue[shares <= 0] >= 251).all()


def test_keyboard_and_pointer_tell_cells(visited: Any) -> None:
    seen, data = visited
    values = np.reshape(data["samples"][1]["inputs"][0]["values"][data["first"]], (6, 4))
    assert seen["before"] is True
    assert seen["told"].startswith("sample 1, ")
    for told, place, share in (
        (seen["readout"], "b at 4", values[4, 1]),
        (seen["hover"], "a at 0", values[0, 0]),
    ):
        assert told.startswith(f"{place}: value ")
        assert float(told.split("share ")[1]) == pytest.approx(share, rel=1e-3)
    assert seen["cursor"] is True
    assert seen["output"].startswith("sample 1, down: ")


def test_download_has_every_number(visited: Any) -> None:
    seen, data = visited
    assert seen["file"] == "samples.csv"
    rows = list(csv.DictReader(io.StringIO(seen["csv"].lstrip("\ufeff"), newline="")))
    assert len(rows) == 3 * 2 * 24
    assert {row["feature"] for row in rows} == set(NAMES)
    shares = np.array([float(row["share"]) for row in rows]).reshape(3, 2, 24)
    assert np.array_equal(shares, [each["inputs"][0]["values"] for each in data["samples"]])


def test_screen_readers_are_told(visited: Any) -> None:
    roles = visited[0]["roles"]
    for told in (
        'button "Sample before"',
        'combobox "Sample"',
        'combobox "Output"',
        'application "Heat map of input',
        'img "Course of the prediction',
        'heading "The largest shares"',
        "columnheader",
        "rowheader",
        "status",
    ):
        assert told in roles, roles


def test_fits_a_phone_at_night_and_is_touched(visited: Any) -> None:
    seen, _ = visited
    assert seen["phone"] == {"wide": 360, "background": "rgb(20, 22, 26)", "small": 0}
    assert ": value " in seen["tap"]


def test_proof_is_read_without_scripts(visited: Any) -> None:
    visible, rows = visited[0]["plain"]
    assert visible
    assert rows > 8
