"""Build the C form of sweeps where a C compiler is; all else that there is to say is in pyproject.toml."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
SWEEPS = "rewriter/engine/sweeps"


def _builder() -> ModuleType:
    # Not imported as a part of the package, which needs torch.
    spec = importlib.util.spec_from_file_location("build_library", HERE / SWEEPS / "build_library.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILDER = _builder()


class BuildWithLibraries(build_py):
    """Copies the packages and builds the libraries beside them; in place for an editable install."""

    def run(self) -> None:
        """Build; without a compiler there are no libraries, and torch's operations do their work."""
        super().run()
        self.libraries = BUILDER.build_all(self.folder())
        if not self.libraries:
            self.warn(
                "found no working C compiler: explanations of recurrent models will be several times slower"
            )

    def folder(self) -> Path:
        """Return where libraries belong."""
        root = HERE if self.editable_mode else Path(self.build_lib)
        return root / SWEEPS / "libraries"

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Name the libraries, too."""
        return [*super().get_outputs(include_bytecode), *map(str, getattr(self, "libraries", []))]


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 of this platform, or for all of them if it holds no library."""

    def get_tag(self) -> tuple[str, str, str]:
        """Say what the wheel runs on."""
        build = self.get_finalized_command("build_py")
        libraries = getattr(build, "libraries", [])
        if not libraries:
            return "py3", "none", "any"
        self.root_is_pure = False
        _, _, platform = super().get_tag()
        if sys.platform == "linux" and all(map(BUILDER.fits_any_linux, libraries)):
            platform = platform.replace("linux_", "manylinux2014_", 1)
        return "py3", "none", platform


setup(cmdclass={"build_py": BuildWithLibraries, "bdist_wheel": PlatformWheel})
