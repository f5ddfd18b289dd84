"""Write docs/reference/onnx_runtimes.md: what loads where, in the runtimes that are installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.rewriter.onnx.runtimes import runners
from tests.rewriter.onnx.runtimes.kinds import FORMS, KINDS, LONGER, STEPS, write_files

TABLE = Path(__file__).parents[4] / "docs/reference/onnx_runtimes.md"
HEAD = f"""# What loads where

Written by `make runtimes`. Each model is exported with a batch of 2 and {STEPS} steps, flat and with
`loops=True`, and run with a batch of 3 and, as a Scan, {LONGER} steps. A number is the worst difference to
torch, relative to max(1, max |torch|); the first stands for the flat file, the second for the Scan.

"""
FOOT = """
OpenVINO is asked for float32 (`INFERENCE_PRECISION_HINT`): by itself it takes bfloat16 on processors that
have it. tinygrad compiles with clang, which must be installed (Debian: `apt-get install clang`).
"""


def shown(said: float | str) -> str:
    """Show one result in a few characters."""
    if isinstance(said, str):
        return "no Scan" if "Scan" in said or "isDynamicShape" in said else "fails"
    return f"{said:.0e}"


def main() -> None:
    """Run every runtime that is installed and write the table."""
    installed = {
        name: importlib.metadata.version(distribution)
        for name, (_, distribution, module) in runners.RUNNERS.items()
        if importlib.util.find_spec(module) is not None
    }
    columns = {}
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        for name in installed:
            command = [sys.executable, runners.__file__, name, folder]
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            columns[name] = json.loads(ran.stdout.splitlines()[-1])
            print(name, columns[name])
    rows = [
        ["", *(f"{name} {version}" for name, version in installed.items())],
        ["---"] * (1 + len(installed)),
        *(
            [kind, *(", ".join(shown(each[f"{kind}.{form}"]) for form in FORMS) for each in columns.values())]
            for kind in KINDS
        ),
    ]
    TABLE.write_text(HEAD + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n" + FOOT)


if __name__ == "__main__":
    main()
