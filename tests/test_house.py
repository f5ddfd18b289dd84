"""The laws of the house: what is public, who imports whom, what an import costs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import rewriter

ROOT = Path(rewriter.__file__).parent.parent
PUBLIC = [
    "ONNX_OPERATORS",
    "DeepExplainer",
    "Diagnosis",
    "EquivalenceReport",
    "Report",
    "RewriteError",
    "assert_equivalent",
    "check_equivalence",
    "decompose",
    "diagnose",
    "export_onnx",
    "register_captum",
    "register_shap",
    "unroll",
]
# Each level may import those before it, and torch.
LEVELS = [
    {"errors", "atoms", "proxies", "reach", "randomness", "source"},
    {"audit", "clone", "twin", "cells", "elementwise", "gates", "face", "layout", "lowered", "kernels"},
    {"base", "rule", "recurrence", "activation_layers"},
    {"tracing", "layers", "cell_layers"},
    {
        "recurrent_rules",
        "unroll",
        "unshare",
        "cleanup",
        "calls",
        "dataflow",
        "module_lowerings",
        "attention_layout",
        "contractions",
        "in_place",
    },
    {"bilinear", "lower_calls", "out_of_place", "linear_calls"},
    {"observed", "embedded", "lower_running"},
    {
        "activations",
        "extrema",
        "pairwise",
        "pooling",
        "products",
        "running_products",
        "softmax",
        "norms",
        "variance",
        "vector_norms",
        "similarity",
    },
    {"attention", "transformer"},
    {"whole"},
]


Breach = tuple[str, str]


def python_files(folder: Path) -> list[Path]:
    """Return all modules below a folder, however deep."""
    return sorted(folder.rglob("*.py"))


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(folder: Path, package: str) -> list[Breach]:
    """Return who in a folder imports a package."""
    return [
        (file.name, name)
        for file in python_files(folder)
        for name in imports(file)
        if name.split(".")[0] == package
    ]


def foreign_imports(folder: Path, allowed: set[str]) -> list[Breach]:
    """Return who in a folder imports what is neither Python's nor ``allowed``."""
    known = sys.stdlib_module_names | allowed
    return [
        (file.name, name)
        for file in python_files(folder)
        for name in imports(file)
        if name.split(".")[0] not in known
    ]


def foreign_at_the_top(folder: Path, allowed: set[str]) -> list[Breach]:
    """Return who in a folder imports, as it is imported, what is neither Python's nor ``allowed``."""
    found = []
    for file in python_files(folder):
        for node in ast.parse(file.read_text()).body:
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            roots = {name.split(".")[0] for name in names}
            found += [(file.name, name) for name in roots - sys.stdlib_module_names - allowed]
    return found


def upward_imports(folder: Path, levels: list[set[str]]) -> list[Breach]:
    """Return who imports a module of a higher level, or one that stands in no level."""
    level = {name: k for k, names in enumerate(levels) for name in names}
    found = []
    for file in python_files(folder):
        for imported in imports(file) if file.stem != "__init__" else ():
            package, *rest = imported.split(".")
            if package == folder.name and rest:
                own, other = level.get(file.stem, -1), level.get(rest[0], len(levels))
                if other > own or rest[0] == file.stem:
                    found.append((file.name, imported))
    return found


def in_circles(folder: Path) -> set[str]:
    """Return the modules that import each other in a circle, and what imports those."""
    graph = {
        ".".join(file.relative_to(folder.parent).with_suffix("").parts): set(imports(file))
        for file in python_files(folder)
    }
    while ready := {name for name, needs in graph.items() if not needs & graph.keys() - {name}}:
        graph = {name: needs for name, needs in graph.items() if name not in ready}
    return set(graph)


def long_files(folder: Path, most: int) -> list[str]:
    """Return the files that have more lines."""
    return [file.name for file in python_files(folder) if len(file.read_text().splitlines()) > most]


def test_public_names() -> None:
    assert rewriter.__all__ == PUBLIC
    assert all(getattr(rewriter, name).__doc__ for name in PUBLIC)
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        rewriter.missing  # noqa: B018 -- the access is what is tested


def test_passes_never_import_rewriter() -> None:
    assert not imports_of(ROOT / "passes", "rewriter")


def test_passes_import_only_torch() -> None:
    assert not foreign_imports(ROOT / "passes", {"torch", "passes"})


def test_passes_import_only_lower_levels() -> None:
    assert not upward_imports(ROOT / "passes", LEVELS)


@pytest.mark.parametrize("package", ["passes", "rewriter"])
def test_no_circle(package: str) -> None:
    assert not in_circles(ROOT / package)


@pytest.mark.parametrize("package", ["rewriter", "passes", "examples", "benchmarks"])
def test_one_idea_a_file(package: str) -> None:
    assert not long_files(ROOT / package, 340)


class TestEachLawCanFail:
    """Each law, on a house in which it is broken, deep in a sub-folder."""

    def plant(self, root: Path, files: dict[str, str]) -> Path:
        for name, text in files.items():
            file = root / "house" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return root / "house"

    def test_imports_of(self, tmp_path: Path) -> None:
        house = self.plant(tmp_path, {"a.py": "import torch", "deep/b.py": "from rewriter import x"})
        assert imports_of(house, "rewriter") == [("b.py", "rewriter"), ("b.py", "rewriter.x")]

    def test_foreign_imports(self, tmp_path: Path) -> None:
        house = self.plant(tmp_path, {"deep/b.py": "import os, numpy"})
        assert foreign_imports(house, {"torch"}) == [("b.py", "numpy")]

    def test_foreign_at_the_top(self, tmp_path: Path) -> None:
        house = self.plant(tmp_path, {"deep/b.py": "import numpy as np\n\ndef f():\n    import shap"})
        assert foreign_at_the_top(house, set()) == [("b.py", "numpy")]

    def test_upward_imports(self, tmp_path: Path) -> None:
        house = self.plant(tmp_path, {"deep/b.py": "import house.a", "a.py": "import os"})
        assert upward_imports(house, [{"b"}, {"a"}]) == [("b.py", "house.a")]
        assert upward_imports(house, [{"a"}, {"b"}]) == []
        assert upward_imports(house, [{"b"}]) == [("b.py", "house.a")]

    def test_circle(self, tmp_path: Path) -> None:
        files = {
            "deep/a.py": "def f():\n    from house.b import f",
            "b.py": "import house.deep.a",
            "c.py": "",
        }
        assert in_circles(self.plant(tmp_path, files)) == {"house.deep.a", "house.b"}

    def test_long_file(self, tmp_path: Path) -> None:
        house = self.plant(tmp_path, {"deep/b.py": "\n" * 3, "a.py": "\n" * 2})
        assert long_files(house, 2) == ["b.py"]


def test_import_brings_in_nothing_optional() -> None:
    optional = [
        "shap",
        "captum",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "tensorflow",
        "matplotlib",
        "rich",
    ]
    program = f"import sys, rewriter; print([name for name in {optional!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_bare_pytest_collects_beside_a_package_called_tests(tmp_path: Path) -> None:
    """As ``pytest``, not ``python -m pytest``, runs it, with somebody else's ``tests`` on the path."""
    other = tmp_path / "tests"
    other.mkdir()
    (other / "__init__.py").write_text("raise RuntimeError('not these')")
    command = [str(Path(sys.executable).with_name("pytest")), "--collect-only", "-q", "tests/test_layers.py"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests/test_layers.py: " in done.stdout


def test_every_import_is_declared() -> None:
    """Both packages run with what ``pip install`` brings, or import it where it is asked for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w-]", each)[0] for each in project["dependencies"]}
    assert not foreign_at_the_top(ROOT / "rewriter", declared | {"rewriter", "passes"})
