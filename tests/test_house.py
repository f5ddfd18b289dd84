"""The laws of the house: what is public, who imports whom, what an import costs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rewriter
from passes.operations.catalogue import operation_of
from tests.support import laws

# Other tests run the same code; coverage would take as long again.
pytestmark = pytest.mark.unmeasured

ROOT = Path(rewriter.__file__).parent.parent
PUBLIC = [
    "ONNX_OPERATORS",
    # What rules bind to: operations of users derive from it.
    "Atom",
    "DeepExplainer",
    "Diagnosis",
    # What assert_equivalent raises: a CI job catches it, and keeps its report.
    "EquivalenceError",
    "EquivalenceReport",
    # What compare_references returns: results that are kept.
    "ReferenceReport",
    "Report",
    "RewriteError",
    "assert_equivalent",
    "check_equivalence",
    "compare_references",
    "decompose",
    "diagnose",
    "export_explainer_onnx",
    "export_onnx",
    "html_report",
    "plot",
    "propose_references",
    "ray",
    "register_captum",
    "register_rule",
    "register_shap",
    "unroll",
    "verify",
]
# Folders and files, the lowest first: each may import those before it. This is the one place for the order.
ORDER = {
    "passes": [
        "errors",
        "leaves",
        "stand_in",
        "pipeline",
        "replacement",
        "operations.contract",
        "operations.running",
        "operations.whole",
        "operations.names",
        "operations.operation",
        "operations.linear",
        "operations.without_slope",
        "operations.elementwise",
        "operations.softmax",
        "operations.norms",
        "operations.maxima",
        "operations.order_statistics",
        "operations.pairwise",
        "operations.products",
        "operations.sampling",
        "operations.scatter",
        "operations.matrices",
        "operations.losses",
        "operations.attention",
        "operations",
        "user_code",
        "graph",
        "recurrent",
        "frontends",
        "lowering",
    ],
    "rewriter": [
        "version",
        "extras",
        "places",
        "keras.installed",
        "inputs",
        "keras",
        "compiler",
        "engine.weights",
        "engine.problem",
        "engine.tiles",
        "engine.tape",
        "engine.rules",
        "engine.integers",
        "engine.decisions",
        "engine.packing",
        "engine.runs",
        "engine.sweeps",
        "engine.loops",
        "engine",
        "engine.path",
        "diagnosis",
        "explainer",
        "references",
        "adapters",
        "equivalence",
        "onnx",
        "onnx_explainer",
        "plot",
        "html",
        "jobs",
        "ray",
        "command_line",
        "pytest_plugin",
        "__main__",
    ],
}


def test_public_names() -> None:
    assert rewriter.__all__ == PUBLIC
    assert all(getattr(rewriter, name).__doc__ for name in PUBLIC)
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        rewriter.missing  # noqa: B018 -- the access is what is tested


def test_passes_never_import_rewriter() -> None:
    assert not laws.imports_of(ROOT / "passes", "rewriter")


def test_passes_import_only_torch() -> None:
    assert not laws.foreign_imports(ROOT / "passes", {"torch", "passes"})


@pytest.mark.parametrize("package", ORDER)
def test_folders_import_downwards_only(package: str) -> None:
    assert not laws.upward_imports(ROOT / package, [f"{package}.{room}" for room in ORDER[package]])


@pytest.mark.parametrize("package", ORDER)
def test_no_circle(package: str) -> None:
    assert not laws.in_circles(ROOT / package)


@pytest.mark.parametrize("package", ["rewriter", "passes", "tests", "examples", "benchmarks", "website"])
def test_one_idea_a_file_and_few_files_a_folder(package: str) -> None:
    assert not laws.long_files(ROOT / package, 400)
    assert not laws.full_folders(ROOT / package, 12)


def is_operation(name: str) -> bool:
    return operation_of(name) is not None


# What stands there are Keras' names of layers and functions, many of which are torch's, too.
TRANSLATES = "rewriter/keras/"
# Some names a file may know: words are names, and one operation may need what no other does.
FEW = 2
# Those that know more, with all that they know.
KNOWN = {
    # How a name shows itself: methods of Python's that tensors have other ones of, and writes of items.
    "passes/operations/names.py": {"complex_", "float_", "index_", "int", "set_item", "setitem"},
    # Kinds and parameters, not operations.
    "passes/operations/operation.py": {"linear", "random", "shape"},
    # A proxy has Python's methods of all operators that write in place.
    "passes/frontends/proxies.py": {
        *("iadd", "iand", "ifloordiv", "ilshift", "imatmul", "imod", "imul", "ior", "ipow", "irshift"),
        *("isub", "itruediv", "ixor", "setitem"),
    },
    # What overwrites all numbers, or some, needs the new ones only.
    "passes/graph/writes.py": {"copy", "fill", "setitem", "type_as", "zero", "zeros_like"},
    "passes/lowering/out_of_place.py": {"clone", "copy_", "getitem", "setitem"},
    # Functions that go by a type, and devices.
    "passes/user_code/audit.py": {"cpu", "cuda", "is_tensor", "isinstance", "type"},
    # Generators of random numbers.
    "passes/user_code/randomness.py": {"cuda", "numpy", "random"},
    # Steps are stacked; T and t are lengths and places.
    "passes/recurrent/unroll.py": {"T", "int", "stack", "t"},
    # Types and fields of C, and the two cells that have a form in it.
    "rewriter/engine/sweeps/compiled.py": {"gru", "lstm", "size"},
    "rewriter/engine/sweeps/library.py": {"cpu", "double", "float", "gru", "lstm"},
    # Operations of that library, and a register that one writes to.
    "rewriter/engine/sweeps/program.py": {"add", "mean", "multiply", "set", "to"},
    "rewriter/engine/sweeps/two_players/program.py": {"add", "multiply", "set"},
    # What it writes into a graph: items, a sum of two parts of the gates, steps apart and together.
    "rewriter/engine/loops/roll.py": {"add", "dim", "getitem", "stack", "unbind"},
    # Products of which a Linear is one, and what turns a matrix round.
    "rewriter/engine/loops/prepared.py": {"T", "linear", "mT", "matmul", "mm", "t"},
    # It writes ONNX, node by node.
    "rewriter/onnx/recurrences/packed_steps.py": {"add", "chunk", "getitem", "int", "split"},
    "rewriter/onnx/recurrences/write.py": {"add", "cat", "getitem", "int", "split", "sub"},
    # Facts about a job, columns of its results.
    "rewriter/jobs/job.py": {"data", "format", "shape"},
    "rewriter/jobs/parts.py": {"to", "values", "values_"},
    # Operators that ONNX lacks, or has a better form of: all that is not the engine's own in a file.
    "rewriter/onnx_explainer/operators.py": {"cumprod", "expm1", "linear", "log1p"},
    # What it writes of sizes into a graph of ATen's operators.
    "rewriter/onnx_explainer/trace.py": {"mul", "sym_size", "view"},
    # Python's operators, by which a program may compute sizes.
    "rewriter/command_line/programs/unasked.py": {
        *(
            "abs",
            "add",
            "and_",
            "eq",
            "floor",
            "floordiv",
            "ge",
            "getitem",
            "gt",
            "invert",
            "le",
            "lshift",
            "lt",
        ),
        *("mod", "mul", "ne", "neg", "not_", "or_", "pos", "pow", "rshift", "sub", "truediv", "xor"),
    },
    # Words of a table, and properties of parameters.
    "rewriter/equivalence/report.py": {"absolute", "and", "dtype", "equal"},
    # Fields of a packed sequence, and a size.
    "rewriter/equivalence/variation.py": {"cpu", "data", "size"},
    "rewriter/equivalence/correspondence.py": {"device", "dtype", "shape"},
}


def know_operations(package: str) -> dict[str, set[str]]:
    known = laws.names_of_operations(ROOT / package, is_operation)
    return {f"{package}/{file}": names for file, names in known.items() if len(names) > FEW}


@pytest.mark.parametrize("package", ORDER)
def test_what_operations_are_called_stands_in_the_rooms_of_their_families(package: str) -> None:
    elsewhere = {
        file: names - KNOWN.get(file, set())
        for file, names in know_operations(package).items()
        if not (re.fullmatch(r"passes/operations/\w+/\w+\.py", file) or file.startswith(TRANSLATES))
    }
    assert not {file: names for file, names in elsewhere.items() if names}


def test_no_exception_is_out_of_date() -> None:
    found = know_operations("passes") | know_operations("rewriter")
    assert not [file for file in KNOWN if found.get(file) != KNOWN[file]]


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
        assert laws.imports_of(house, "rewriter") == [("b.py", "rewriter"), ("b.py", "rewriter.x")]

    @pytest.mark.parametrize(
        "text",
        [
            "from rewriter.a import b",
            "def f():\n    importlib.import_module('rewriter.a')",
            "import_module(f'rewriter.{name}')",
            "__import__('rewriter')",
        ],
    )
    def test_imports_in_any_form(self, tmp_path: Path, text: str) -> None:
        house = self.plant(tmp_path, {"deep/b.py": text})
        assert {file for file, _ in laws.imports_of(house, "rewriter")} == {"b.py"}

    def test_foreign_imports(self, tmp_path: Path) -> None:
        house = self.plant(tmp_path, {"deep/b.py": "import os, numpy"})
        assert laws.foreign_imports(house, {"torch"}) == [("b.py", "numpy")]

    def test_foreign_at_the_top(self, tmp_path: Path) -> None:
        house = self.plant(tmp_path, {"deep/b.py": "import numpy as np\n\ndef f():\n    import shap"})
        assert laws.foreign_at_the_top(house, set()) == [("b.py", "numpy")]

    def test_upward_imports(self, tmp_path: Path) -> None:
        files = {
            "deep/b.py": "import house.a",
            "a.py": "import os",
            "deep/low/c.py": "from house.deep import b",
        }
        house = self.plant(tmp_path, files)
        up, down = ("house.deep.b", "house.a"), ("house.deep.low.c", "house.deep")
        assert laws.upward_imports(house, ["house.deep", "house.a"]) == [up]
        assert laws.upward_imports(house, ["house.a", "house.deep"]) == []
        low_first = ["house.a", "house.deep.low", "house.deep"]
        assert laws.upward_imports(house, low_first) == [down, ("house.deep.low.c", "house.deep.b")]
        assert laws.upward_imports(house, ["house.deep"]) == [("house.a", "stands in no room")]

    @pytest.mark.parametrize(
        "text",
        [
            "from .. import a",
            "from ..a import x",
            "def f():\n    from ..a.x import y",
            "import_module('..a', __package__)",
        ],
    )
    def test_relative_imports_are_imports(self, tmp_path: Path, text: str) -> None:
        house = self.plant(tmp_path, {"deep/b.py": text, "deep/c.py": "from . import b", "a.py": ""})
        found = laws.upward_imports(house, ["house.deep", "house.a"])
        assert {own for own, _ in found} == {"house.deep.b"}
        assert laws.upward_imports(house, ["house.a", "house.deep"]) == []

    def test_relative_circle(self, tmp_path: Path) -> None:
        files = {"deep/a.py": "from .. import b", "b.py": "from .deep.a import x"}
        assert laws.in_circles(self.plant(tmp_path, files)) == {"house.deep.a", "house.b"}

    def test_circle(self, tmp_path: Path) -> None:
        files = {"deep/a.py": "def f():\n    from house.b import f", "b.py": "import house.deep.a"}
        assert laws.in_circles(self.plant(tmp_path, files)) == {"house.deep.a", "house.b"}

    def test_long_file(self, tmp_path: Path) -> None:
        house = self.plant(tmp_path, {"deep/b.py": "\n" * 3, "a.py": "\n" * 2})
        assert laws.long_files(house, 2) == ["b.py"]

    @pytest.mark.parametrize(
        "text",
        [
            "X = {'exp', 'log', 'sin'}",
            "X = 'exp log sin'.split()",
            "X = re.compile('exp|log|sin')",
            "X = [('exp', 1), ('log', 2), ('sin', 3), ('other', 4), ('words', 5)]",
            "X = {torch.exp: 1, F.log: 2, torch.Tensor.sin: 3}",
            "X = {torch.ops.aten.exp.default: 1, torch.ops.aten.log: 2, aten.sin.default: 3}",
            "X = (nn.functional.exp, torch.nn.functional.log, torch.special.sin)",
            "def f(a):\n    return a == 'exp' or a == 'log' or 'sin' == a",
            "def f(a):\n    match a:\n        case 'exp': return 1\n        case 'log' | 'sin': return 2",
            "def f(a):\n    if a is torch.exp: return 'log'\n\nclass A:\n    def g(self): return {'sin': 1}",
        ],
    )
    def test_names_of_operations(self, tmp_path: Path, text: str) -> None:
        files = {
            "deep/a.py": text,
            "b.py": "def f(x):\n    'Of exp, log, sin.'\n    return torch.exp(x) + torch.log(x) + x.sin()",
            "c.py": "X = torch.float, torch.device, torch.Size, 'words of exp, log, sin'",
        }
        found = laws.names_of_operations(self.plant(tmp_path, files), is_operation)
        assert found == {"deep/a.py": {"exp", "log", "sin"}}

    def test_full_folder(self, tmp_path: Path) -> None:
        house = self.plant(tmp_path, {f"deep/{name}.py": "" for name in ("a", "b", "__init__", "lower/c")})
        assert laws.full_folders(house, 1) == ["deep"]


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
        "keras",
    ]
    found = f"[name for name in {optional!r} if name in sys.modules]"
    program = f"import sys, rewriter; rewriter.plot, rewriter.keras; print({found})"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_bare_pytest_collects_beside_a_package_called_tests(tmp_path: Path) -> None:
    """As ``pytest``, not ``python -m pytest``, runs it, with somebody else's ``tests`` on the path."""
    other = tmp_path / "tests"
    other.mkdir()
    (other / "__init__.py").write_text("raise RuntimeError('not these')")
    command = [
        str(Path(sys.executable).with_name("pytest")),
        "--collect-only",
        "-q",
        "tests/passes/recurrent/test_layers.py",
    ]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests/passes/recurrent/test_layers.py: " in done.stdout


def test_every_import_is_declared() -> None:
    """Both packages run with what ``pip install`` brings, or import it where it is asked for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w-]", each)[0] for each in project["dependencies"]}
    found = laws.foreign_at_the_top(ROOT / "rewriter", declared | {"rewriter", "passes"})
    # Nobody imports these without it.
    needs = {("pytest_plugin.py", "pytest")}
    needs |= {(file.name, "typer") for file in (ROOT / "rewriter/command_line").glob("*.py")}
    assert not set(found) - needs
