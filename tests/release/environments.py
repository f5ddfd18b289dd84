"""Environments with nothing in them but a wheel, what it asks for, and one extra."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ("demo", "test", "ray")
_PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")


def pinned(*, without: frozenset[str] = frozenset()) -> list[str]:
    """Return the lines ``name==version`` of all requirements, each once."""
    texts = [(ROOT / f"requirements/{name}.txt").read_text(encoding="utf-8") for name in REQUIREMENTS]
    lines = re.findall(r"^[\w.-]+==\S+$", "\n".join(texts), re.MULTILINE)
    return [line for line in dict.fromkeys(lines) if line.partition("==")[0].lower() not in without]


@dataclass(frozen=True)
class Environment:
    """A folder with a Python of its own.

    Args:
        folder: where it is.

    """

    folder: Path

    @classmethod
    def empty(cls, python: str, folder: Path) -> Environment:
        """Make one with pip alone."""
        # What this process has installed must not be found by the other.
        subprocess.run([python, "-m", "venv", str(folder)], check=True, env=_clean())
        return cls(folder)

    def copy(self, python: str, folder: Path) -> Environment:
        """Return another with the same packages, whose files are shared, not copied."""
        other = Environment.empty(python, folder)
        place = other.packages
        shutil.rmtree(place)
        shutil.copytree(self.packages, place, copy_function=os.link)
        return other

    @property
    def packages(self) -> Path:
        """Where its packages are."""
        return next(self.folder.glob("lib/python3*/site-packages"))

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.folder / "bin/python")

    def install(self, *what: str, constraints: list[str]) -> None:
        """Install packages, or do what else pip is told, with no other versions than the constraints name."""
        file = self.folder / "constraints.txt"
        file.write_text("\n".join(constraints), encoding="utf-8")
        command = [self.python, *_PIP, "install", "--no-warn-script-location", "-c", str(file), *what]
        done = subprocess.run(command, capture_output=True, text=True, env=_clean())
        assert done.returncode == 0, done.stderr

    def has(self, package: str) -> bool:
        """Whether a package can be found in it."""
        return any((self.packages / f"{package}{ending}").exists() for ending in ("", ".py"))

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run its Python in a folder where nothing of the project is."""
        place = self.folder / "elsewhere"
        place.mkdir(exist_ok=True)
        return subprocess.run(
            [self.python, "-P", *arguments],
            cwd=place,
            capture_output=True,
            text=True,
            env=_clean() | variables,
        )


def _clean() -> dict[str, str]:
    """Return the variables of this process less those by which Python finds other packages."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
    return kept | {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
