"""The laws of the house: what is public, who imports whom, what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
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
    {"observed", "aten", "export_checks", "exported", "embedded", "lower_running"},
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


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_public_names() -> None:
    assert rewriter.__all__ == PUBLIC
    assert all(getattr(rewriter, name).__doc__ for name in PUBLIC)
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        rewriter.missing  # noqa: B018 -- the access is what is tested


def test_passes_never_import_rewriter() -> None:
    for file in (ROOT / "passes").glob("*.py"):
        assert not [name for name in imports(file) if name.split(".")[0] == "rewriter"], file


def test_passes_import_only_torch_and_lower_levels() -> None:
    level = {name: k for k, names in enumerate(LEVELS) for name in names}
    files = {file.stem: file for file in (ROOT / "passes").glob("*.py") if file.stem != "__init__"}
    assert files.keys() == level.keys()
    for name, file in files.items():
        for imported in imports(file):
            package, *rest = imported.split(".")
            assert package in sys.stdlib_module_names | {"torch", "passes"}, f"{name} imports {imported}"
            if package == "passes" and rest:
                assert level[rest[0]] <= level[name], f"{name} imports {imported}"
                assert rest[0] != name


def test_no_cycle_among_passes() -> None:
    graph = {
        file.stem: {n.split(".")[1] for n in imports(file) if n.startswith("passes.")}
        for file in (ROOT / "passes").glob("*.py")
    }
    done: set[str] = {"__init__"}
    while len(done) < len(graph):
        ready = {name for name, needs in graph.items() if name not in done and needs <= done}
        assert ready, f"a cycle among {sorted(graph.keys() - done)}"
        done |= ready


@pytest.mark.parametrize("package", ["rewriter", "passes", "examples", "benchmarks"])
def test_one_idea_a_file(package: str) -> None:
    for file in (ROOT / package).glob("*.py"):
        assert len(file.read_text().splitlines()) <= 340, file


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
