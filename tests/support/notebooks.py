"""Notebooks of the examples: run from top to bottom in a kernel of their own, and held to what was committed.

``python -m tests.support.notebooks [NAME ...]`` runs them, or those whose names contain one of the words, and
writes what they show into their files.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "examples/notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)")
# Folders of somebody's machine.
PATH = re.compile(r"(?<![\w.:/])/(?:home|Users|root|tmp|usr|opt|var|work|private)/|[A-Z]:\\\\")


def executed(notebook: Any, folder: Path) -> Any:
    """Return a notebook as it is after a run in a folder, in a kernel that nothing ran in before.

    Raises:
        CellExecutionError: if a cell throws.

    """
    import nbclient
    import nbformat

    # As text, so that a copy is run, and lines are one text.
    run = nbformat.reads(json.dumps(notebook), as_version=4)
    client = nbclient.NotebookClient(
        run,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--log-level=ERROR"],
        coalesce_streams=True,
    )
    # tqdm, which shap imports, says in each kernel that there are no widgets.
    silent = {"PYTHONWARNINGS": "ignore:IProgress not found", "OMP_NUM_THREADS": "1"}
    client.execute(env=os.environ | silent)
    return tidied(run)


def tidied(notebook: Any) -> Any:
    """Return a notebook without what is of one run or one machine: times, versions, names of cells."""
    notebook["metadata"] = METADATA
    for k, cell in enumerate(notebook["cells"]):
        cell["id"], cell["metadata"] = f"cell-{k}", {}
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output["metadata"] = {}
    return notebook


def text_of(lines: str | list[str]) -> str:
    """Return text that a file may hold as lines."""
    return lines if isinstance(lines, str) else "".join(lines)


def shown(cell: Any) -> list[tuple[str, str]]:
    """Return what a cell shows: a kind and a text, empty for pictures; all that was printed is one text.

    A kernel sends what is printed in as many pieces as its clock makes of it.
    """
    printed: dict[str, str] = {}
    found = []
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":
            name = output["name"]
            printed[name] = printed.get(name, "") + text_of(output["text"])
        elif output["output_type"] == "error":
            found.append(("error", output["ename"]))
        else:
            data = output["data"]
            if "image/png" in data:
                found.append(("picture", ""))
            else:
                found.append(("text", text_of(data.get("text/plain", ""))))
    return [*printed.items(), *found]


def differences(committed: Any, run: Any, tolerance: float = 0.02) -> list[str]:
    """Return in what two runs of a notebook differ: words, pictures, figures beyond a tolerance.

    Args:
        committed: a notebook with outputs.
        run: the same with other ones.
        tolerance: of numbers, relative; two in the last digit are allowed besides. Numbers such as 3e-07 are
            rounding errors, whose size is another on each machine.

    """
    found = []
    for k, (a, b) in enumerate(zip(committed["cells"], run["cells"], strict=True)):
        before, now = shown(a), shown(b)
        if [(kind, _words(text)) for kind, text in before] != [(kind, _words(text)) for kind, text in now]:
            found.append(f"cell {k}: committed {before}, now {now}")
            continue
        for (_, text), (_, other) in zip(before, now, strict=True):
            for one, two in zip(NUMBER.findall(text), NUMBER.findall(other), strict=True):
                if not near(one, two, tolerance):
                    found.append(f"cell {k}: committed {one}, now {two}: {text!r}")
    return found


def _words(text: str) -> list[str]:
    # Tables are as wide as their numbers.
    return NUMBER.sub(" # ", text).split()


def near(one: str, two: str, tolerance: float) -> bool:
    """Whether two printed numbers are the same but for their last digits."""
    a, b = float(one), float(two)
    if "e-" in one or "e-" in two:
        return "e-" in one and "e-" in two and max(a, b) < 1e-4
    digit = max(10.0 ** -len(each.partition(".")[2]) if "e" not in each else 0.0 for each in (one, two))
    # Whole numbers are often counts.
    last = 0.0 if digit == 1 else 2.001 * digit
    return abs(a - b) <= last + tolerance * max(abs(a), abs(b))


def main() -> None:
    import nbformat

    for path in sorted(FOLDER.glob("*.ipynb")):
        if sys.argv[1:] and not any(word in path.stem for word in sys.argv[1:]):
            continue
        with tempfile.TemporaryDirectory() as folder:
            notebook = executed(nbformat.read(path, as_version=4), Path(folder))
        path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
