"""The page of examples/10_in_the_browser.py in Chromium: its numbers are torch's, whatever is drawn.

``make browser`` runs it; Chromium and onnxruntime-web come in packages of npm.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch

from rewriter import DeepExplainer

pytestmark = [pytest.mark.browser, pytest.mark.unmeasured]
EXAMPLE = Path(__file__).parents[3] / "examples/10_in_the_browser.py"
EXPLAIN = Path(__file__).parent / "browser/explain.mjs"
# The file runs in float32, and is held to the same when it is written; torch runs in float64 here.
CLOSE, ADDITIVE = 1e-5, 1e-6
ACCELEROMETER_Y, GYROSCOPE_X, GYROSCOPE_Z = 1, 3, 5
Array = np.ndarray[Any, Any]


class Static(SimpleHTTPRequestHandler):
    """Files of a folder; below ``/without/NAME/`` all but one of them."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/without/"):
            name, _, file = self.path.removeprefix("/without/").partition("/")
            self.path = f"/{file}"
            if file == name:
                self.send_error(404)
                return
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        """Keep the terminal as it is."""


class Visited(NamedTuple):
    """What a browser saw, what it asked for, and what the page is of."""

    seen: Any
    asked: list[str]
    address: str
    folder: Path
    example: Any
    model: Any
    explainer: DeepExplainer
    test: Any

    def numbers(self, name: str) -> tuple[Array, Array]:
        """Return series (50, 6) and shares (50, 6, 4) of a file that was downloaded."""
        _, *rows = csv.reader(io.StringIO(self.seen["csv"][name].lstrip("\ufeff"), newline=""))
        assert [row[1] for row in rows[:6]] == self.example.CHANNELS
        table = np.array([[float(each) for each in row[3:]] for row in rows])
        return table[:, 0].reshape(50, 6), table[:, 1:].reshape(50, 6, 4)

    def recording(self, place: int) -> Array:
        """Return a recording that the page offers, as it is in the data set."""
        activity, which = divmod(place, self.example.RECORDINGS_PER_ACTIVITY)
        of = np.flatnonzero(self.test.labels.numpy() == activity)[which]
        return self.test.x[of].numpy().astype(float)

    def engine(self, series: Array) -> Array:
        """Return DeepExplainer's values in float64."""
        return np.asarray(self.explainer.shap_values(torch.tensor(series)[None])[0])

    def predicted(self, series: Array) -> Array:
        with torch.no_grad():
            return np.asarray(self.model(torch.tensor(series)[None])[0])


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> Visited:
    spec = importlib.util.spec_from_file_location("in_the_browser", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    learnt, test = example.load("train"), example.load("test")
    model, background = example.trained(learnt), example.references(learnt)
    folder, saw = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("saw")
    example.write(folder, model, background, test)
    Static.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Static, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/"
    try:
        done = subprocess.run(
            ["node", str(EXPLAIN), address, str(saw)], capture_output=True, text=True, timeout=240
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert done.returncode == 0, done.stderr
    explainer = DeepExplainer(model.double(), background.double(), progress=False)
    return Visited(json.loads(done.stdout), Static.asked, address, folder, example, model, explainer, test)


def check_values(visited: Visited, name: str) -> None:
    series, shares = visited.numbers(name)
    expected = visited.engine(series)
    for k in range(4):
        assert np.abs(shares[..., k] - expected[..., k]).max() <= CLOSE * np.abs(expected[..., k]).max()
        # Something was explained.
        assert np.abs(expected[..., k]).max() > 1e-3


def test_a_recording_is_explained_as_by_torch(visited: Visited) -> None:
    for name, place in ("first", 0), ("recorded", 10), ("reset", 10):
        # Nine digits say a number of float32.
        assert np.array_equal(visited.numbers(name)[0].astype(np.float32), visited.recording(place))
        check_values(visited, name)


def test_sliders_are_explained_as_by_torch(visited: Visited) -> None:
    expected = visited.recording(10)
    mean = expected[:, GYROSCOPE_X].mean()
    expected[:, GYROSCOPE_X] = mean + 1.5 * (expected[:, GYROSCOPE_X] - mean)
    expected = np.concatenate([expected[:1]] * 3 + [expected[:-3]])
    series, shares = visited.numbers("slid")
    # Rounded to float32 in the end.
    assert np.abs(series - expected).max() <= 1e-6 * np.abs(expected).max()
    check_values(visited, "slid")
    assert np.abs(shares - visited.numbers("recorded")[1]).max() > 1e-3
    assert visited.seen["sliders"] == ["+0.6 s", "0.6 s"]
    assert visited.seen["disabled"] is True


def test_what_is_drawn_is_explained_as_by_torch(visited: Visited) -> None:
    (series, shares), (recorded, before) = visited.numbers("drawn"), visited.numbers("recorded")
    drawn = series[10:31, ACCELEROMETER_Y]
    changed = series != recorded
    assert changed[10:31, ACCELEROMETER_Y].all()
    assert changed.sum() == 21
    limit = visited.example.shown(visited.test, 1.0)["channels"][ACCELEROMETER_Y]["limit"]
    # From a fifth below the top to a fifth above the bottom, straight; a pixel is a fiftieth of the limit.
    assert np.abs(drawn - np.linspace(0.6, -0.6, 21) * limit).max() <= limit / 40
    check_values(visited, "drawn")
    assert np.abs(shares - before).max() > 1e-3
    assert visited.seen["readout"].startswith("accelerometer y at 2.0 s: ")
    assert float(visited.seen["readout"].split("share ")[1]) == pytest.approx(
        shares[10, ACCELEROMETER_Y, visited.seen["recorded"]["checked"]], rel=1e-3
    )


def test_one_swing_makes_another_activity_of_walking(visited: Visited) -> None:
    """The picture of the documentation."""
    walking, swing = visited.recording(9), visited.seen["swing"]
    limit = visited.example.shown(visited.test, 1.0)["channels"][0]["limit"]
    assert visited.test.activities[visited.predicted(walking).argmax()] == "walking"
    walking[6:13, 0] = limit * np.array([0.17, 0.42, 0.75, 0.83, 0.67, 0.33, 0])
    # Pointers are at whole pixels.
    assert [float(each.rstrip("%")) for each in swing["outputs"]] == pytest.approx(
        100 * visited.predicted(walking), abs=1
    )
    assert float(swing["outputs"][0].rstrip("%")) > 90


def test_keys_draw(visited: Visited) -> None:
    (series, _), (before, _), (back, _) = (visited.numbers(name) for name in ("keys", "drawn", "put back"))
    limit = visited.example.shown(visited.test, 1.0)["channels"][GYROSCOPE_Z]["limit"]
    expected = before.copy()
    expected[2, GYROSCOPE_Z] += 2 * limit / 20
    expected[49, GYROSCOPE_Z] -= 5 * limit / 20
    assert np.abs(series - expected).max() <= 1e-6 * limit
    check_values(visited, "keys")
    said, now = visited.seen["keys"]
    assert said.startswith("gyroscope z at 9.8 s: ")
    assert float(now) == pytest.approx(expected[49, GYROSCOPE_Z], rel=1e-3)
    expected[49, GYROSCOPE_Z] = before[49, GYROSCOPE_Z]
    assert np.abs(back - expected).max() <= 1e-6 * limit


def test_page_shows_what_adds_up(visited: Visited) -> None:
    """Four digits are shown."""
    for name, shown in (("first", "first"), ("recorded", "recorded"), ("recorded", "other")):
        seen, (series, shares) = visited.seen[shown], visited.numbers(name)
        k, f, base = seen["checked"], visited.predicted(series), visited.explainer.expected_value
        assert [float(each.rstrip("%")) for each in seen["outputs"]] == pytest.approx(100 * f, abs=0.051)
        assert [float(each.rstrip("%")) for each in seen["widths"]] == pytest.approx(100 * f, rel=1e-4)
        assert float(seen["base"]) == pytest.approx(base[k], rel=1e-3)
        assert float(seen["total"]) == pytest.approx(f[k], rel=1e-3)
        assert float(seen["sum"]) == pytest.approx(f[k] - base[k], rel=1e-3)
        of_channels = [float(each.removeprefix("sum ")) for each in seen["sums"]]
        assert of_channels == pytest.approx(shares[..., k].sum(0), rel=1e-3)
        assert seen["explained"] == visited.test.activities[k]
    assert visited.seen["other"]["checked"] == visited.seen["recorded"]["checked"] - 1


@pytest.mark.parametrize("name", ["first", "recorded", "slid", "drawn", "keys"])
def test_shares_add_up(visited: Visited, name: str) -> None:
    series, shares = visited.numbers(name)
    error = visited.explainer.expected_value + shares.sum((0, 1)) - visited.predicted(series)
    assert np.abs(error).max() <= ADDITIVE


def test_colours_are_the_shares(visited: Visited) -> None:
    seen = visited.seen["recorded"]
    shares = visited.numbers("recorded")[1][..., seen["checked"]]
    limit = np.abs(shares).max()
    assert float(seen["high"]) == pytest.approx(limit, rel=0.05)
    colours = np.array(visited.seen["colours"]).reshape(6, 50, 4).swapaxes(0, 1)
    part = np.abs(shares)[..., None] / limit
    ends = np.where(shares[..., None] < 0, [0, 139, 251], [255, 0, 81])
    assert np.abs(colours[..., :3] - (255 + part * (ends - 255))).max() <= 1


def test_asks_nobody_else(visited: Visited) -> None:
    files = {each.name for each in visited.folder.iterdir()}
    whole = [path for path in visited.asked if not path.startswith("/without/")]
    assert {path.lstrip("/") or "index.html" for path in whole} == files
    # Those of the worker are seen, too.
    assert f"{visited.address}explainer.onnx" in visited.seen["requests"]
    others = [each for each in visited.seen["requests"] if not each.startswith(visited.address)]
    assert {each.split(":")[0] for each in others} <= {"blob", "data"}
    assert visited.seen["errors"] == []


def test_screen_readers_are_told(visited: Visited) -> None:
    for told in (
        'combobox "Recording"',
        'button "Recording before"',
        'group "Prediction choose what is explained"',
        'radio "running ',
        'slider "accelerometer x in m/s²"',
        'slider "Strength of the movement',
        'slider "Shift in time',
        "status",
    ):
        assert told in visited.seen["roles"], visited.seen["roles"]
    best = int(visited.predicted(visited.recording(10)).argmax())
    assert visited.seen["told"][0].startswith(f"{visited.test.activities[best]}, ")


def test_fits_a_phone_at_night_and_is_drawn_with_a_finger(visited: Visited) -> None:
    phone = visited.seen["phone"]
    assert (phone["wide"], phone["cut"], phone["small"]) == (360, [], 0)
    assert phone["background"] == "rgb(20, 22, 26)"
    # The prediction stays in sight.
    assert phone["prediction"] == 0
    # Up and down scrolls, and draws nothing; sideways draws, in one channel.
    assert phone["scrolled"] >= 40
    assert phone["kept"] is True
    assert phone["swiped"] == [False, True, False, False, False, False]


def test_says_what_is_missing(visited: Visited) -> None:
    assert visited.seen["plain"] is True
    assert len(visited.seen["failed"]) == 6
    for name, (message, visible) in visited.seen["failed"].items():
        assert name in message
        assert visible is False


def test_documentation_says_how_large_it_is(visited: Visited) -> None:
    page = (EXAMPLE.parents[1] / "docs/guides/browser.md").read_text(encoding="utf-8")
    total = sum(file.stat().st_size for file in visited.folder.iterdir()) / 1e6
    assert f"{total:.1f} MB" in page
