"""Build the C form of sweeps: for wheels and editable installs, by setup.py, or when a user asks for it.

It needs Python alone, because setup.py reads this file where torch is not installed. A library is named after
its source, so that one of an older source is not found. It has no dependency: the functions of OpenMP are
found in the process, where torch has brought them, and share their threads with torch; a second form does
without for where they are not found.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("sweep.c")
#: Where wheels and editable installs have the libraries.
FOLDER = Path(__file__).with_name("libraries")
REALS = ("float", "double")
#: Instructions of processors by what torch calls them; what it calls otherwise has those that all have.
INSTRUCTIONS = {"AVX2": "-march=x86-64-v3", "AVX512": "-march=x86-64-v4"}
#: With threads and without.
OPENMP = {"threads": "-fopenmp", "alone": "-fopenmp-simd"}
# NaN and infinity must stay what they are: no -ffast-math. A loop that becomes a call of memset would need the
# system's C library.
_FLAGS = (
    *("-std=gnu11", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math"),
    *("-ffreestanding", "-fno-tree-loop-distribute-patterns"),
)
_SECONDS = 60


def levels() -> tuple[str, ...]:
    """Return the instructions for which this machine's kind of processor has libraries, the fewest first.

    Example:
        >>> levels()[0]
        ''

    """
    # Apple's compilers make libraries of two kinds of processor, none of which has these.
    on_x86 = platform.machine().lower() in ("x86_64", "amd64") and sys.platform != "darwin"
    return ("", *INSTRUCTIONS) if on_x86 else ("",)


@functools.cache
def _key() -> str:
    text = "\0".join([SOURCE.read_text(encoding="utf-8"), *_FLAGS])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def name_of(real: str, level: str, threads: str) -> str:
    """Return the name of a library.

    Args:
        real: ``"float"`` or ``"double"``.
        level: the instructions, as torch calls them.
        threads: a key of :data:`OPENMP`.

    Example:
        >>> name_of("float", "AVX2", "alone").partition("-")[2].partition("-")[2]
        'float-AVX2-alone.so'

    """
    return (
        "-".join(filter(None, ("sweep", _key(), real, level if level in INSTRUCTIONS else "", threads)))
        + ".so"
    )


def compiler() -> str | None:
    """Return the path of the system's C compiler, ``$CC`` first; None if there is none."""
    return next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)


def build(folder: Path, real: str, level: str) -> list[Path]:
    """Build the libraries of a type of numbers and some instructions, unless the folder has them.

    Returns:
        Those that it has now; none without a compiler that can build them.

    """
    found = compiler()
    built = []
    for threads, openmp in OPENMP.items():
        path = folder / name_of(real, level, threads)
        if path.exists() or (found is not None and _compiled(found, path, real, level, openmp)):
            built.append(path)
    return built


def _compiled(found: str, path: Path, real: str, level: str, openmp: str) -> bool:
    flags = [*_FLAGS, f"-DREAL={real}", openmp, *filter(None, [INSTRUCTIONS.get(level)])]
    # Mach-O asks for each function when it links, ELF does not.
    link = ["-shared", *(["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [])]
    with tempfile.TemporaryDirectory(dir=path.parent) as place:
        compiled, made = Path(place) / "sweep.o", Path(place) / path.name
        commands = (
            [found, *flags, "-c", str(SOURCE), "-o", str(compiled)],
            [found, *link, str(compiled), "-o", str(made)],
        )
        for command in commands:
            try:
                done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
            except (OSError, subprocess.SubprocessError):
                return False
            if done.returncode:
                return False
        # Another process may do the same at the same time; either file will do.
        made.replace(path)
    return True


def build_all(folder: Path) -> list[Path]:
    """Build all libraries that this machine can build, into a folder that is made for them."""
    folder.mkdir(parents=True, exist_ok=True)
    return [each for real in REALS for level in levels() for each in build(folder, real, level)]


def fits_any_linux(library: Path) -> bool:
    """Whether a library needs no version of the system's C library, nor any other library.

    Args:
        library: a file of ELF.

    """
    return b"GLIBC_" not in library.read_bytes() and b".so." not in library.read_bytes()
