"""The notebooks of the examples: what is committed, and that it is what they show when they run."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.notebooks import FOLDER, METADATA, NUMBER, PATH, differences, executed, shown, text_of

# They read files, or run elsewhere.
pytestmark = pytest.mark.unmeasured

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 400 * 1024


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def code_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def all_text(cell: Any) -> str:
    return text_of(cell["source"]) + "".join(text for _, text in shown(cell))


def faults(notebook: Any) -> list[str]:
    """Return what is wrong with a notebook as it is committed."""
    cells = code_of(notebook)
    kinds = [kind for cell in cells for kind, _ in shown(cell)]
    *_, checks, conclusion = notebook["cells"]
    said = text_of(conclusion["source"])
    numbers = {float(each) for cell in cells for each in NUMBER.findall(all_text(cell))}
    told = [each for each in NUMBER.findall(said) if float(each) not in numbers]
    found = {
        "not run once, from top to bottom": [cell["execution_count"] for cell in cells]
        != list(range(1, len(cells) + 1)),
        "a cell threw, or warned": bool({"error", "stderr"} & set(kinds)),
        "no picture": "picture" not in kinds,
        "the folders of a machine": any(PATH.search(all_text(cell)) for cell in cells),
        "metadata of a machine": notebook["metadata"] != METADATA
        or any(cell["metadata"] for cell in notebook["cells"]),
        "the last cell but one asserts nothing": not text_of(checks["source"]).startswith("assert "),
        "the last cell is no conclusion": not re.match(r"## What .* would say\n", said),
        f"the conclusion has figures of its own: {told}": bool(told),
    }
    return [what for what, wrong in found.items() if wrong]


def test_there_are_five() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_with_what_it_shows(path: Path) -> None:
    assert not faults(read(path))
    assert path.stat().st_size < LARGEST


@pytest.mark.notebooks
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_shows_what_is_committed(path: Path, tmp_path: Path) -> None:
    committed = read(path)
    run = executed(committed, tmp_path)
    assert not faults(run)
    assert not differences(committed, run)


class TestEachCheckCanFail:
    """Each check, on a notebook with that fault."""

    @pytest.fixture
    def notebook(self) -> Any:
        return read(NOTEBOOKS[0])

    @pytest.mark.parametrize(
        ("source", "what"),
        [
            ("## What somebody would say\n\nIt is 0.123456.", "the conclusion has figures of its own"),
            ("It is so.", "the last cell is no conclusion"),
        ],
    )
    def test_conclusion(self, notebook: Any, source: str, what: str) -> None:
        notebook["cells"][-1]["source"] = source
        (found,) = faults(notebook)
        assert found.startswith(what)

    @pytest.mark.parametrize(
        ("output", "what"),
        [
            ({"output_type": "stream", "name": "stderr", "text": "UserWarning"}, "a cell threw, or warned"),
            ({"output_type": "error", "ename": "ValueError"}, "a cell threw, or warned"),
            (
                {"output_type": "stream", "name": "stdout", "text": ["in\n", "/home/me/x.py"]},
                "the folders of a machine",
            ),
        ],
    )
    def test_outputs(self, notebook: Any, output: Any, what: str) -> None:
        code_of(notebook)[0]["outputs"] = [output]
        assert faults(notebook) == [what]

    def test_order_of_runs(self, notebook: Any) -> None:
        code_of(notebook)[0]["execution_count"] = 7
        assert faults(notebook) == ["not run once, from top to bottom"]

    def test_metadata(self, notebook: Any) -> None:
        notebook["cells"][0]["metadata"] = {"execution": {"iopub.status.busy": "2026-01-01"}}
        assert faults(notebook) == ["metadata of a machine"]

    def test_checks_and_pictures(self, notebook: Any) -> None:
        notebook["cells"][-2]["source"] = "print(1)"
        for cell in code_of(notebook):
            cell["outputs"] = [each for each in cell["outputs"] if each["output_type"] == "stream"]
        assert faults(notebook)[:2] == ["no picture", "the last cell but one asserts nothing"]

    @pytest.mark.parametrize(
        ("before", "now", "differ"),
        [
            ("accuracy 0.95\n", "accuracy 0.96\n", False),
            ("accuracy 0.95\n", "accuracy 0.90\n", True),
            ("error 3e-07", "error 8e-07", False),
            ("error 3e-07", "error 0.1", True),
            ("34 names", "35 names", True),
            ("600 came", "603 came", False),
            ("(40, 100) running", "(40, 100) walking", True),
        ],
    )
    def test_differences(self, notebook: Any, before: str, now: str, differ: bool) -> None:
        other = copy.deepcopy(notebook)
        for each, text in ((notebook, before), (other, now)):
            code_of(each)[0]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": text}]
        assert bool(differences(notebook, other)) == differ

    def test_pieces_in_which_a_text_was_sent_are_no_difference(self, notebook: Any) -> None:
        other = copy.deepcopy(notebook)
        for each, pieces in ((notebook, ["error 0.5\nnext\n"]), (other, ["error 0", ".5\n", "next\n"])):
            code_of(each)[0]["outputs"] = [
                {"output_type": "stream", "name": "stdout", "text": piece} for piece in pieces
            ]
        assert not differences(notebook, other)

    def test_a_picture_that_is_gone(self, notebook: Any) -> None:
        other = copy.deepcopy(notebook)
        for cell in code_of(other):
            cell["outputs"] = [each for each in cell["outputs"] if each["output_type"] == "stream"]
        assert differences(notebook, other)
