"""The extra ``cli``: the command inspects and checks a model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

command = Path(sys.executable).with_name("rewriter")
for name in ("inspect", "check"):
    done = subprocess.run(
        [command, name, "models:for_command_line"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "rnn" in done.stdout
