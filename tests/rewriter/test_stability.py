"""What docs/about/stability.md promises: names that do not move, and results that later versions load."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import passes
import rewriter
from passes.frontends import proxies
from passes.graph import leaf_functions
from rewriter import decompose
from tests.support import saved

# Files of which all classes are results that users get.
RESULTS = {
    "rewriter.compiler.report",
    "rewriter.equivalence.report",
    "rewriter.diagnosis.diagnose",
    "rewriter.references.compare",
}
NAMES = saved.FOLDER / "names.txt"


def promised() -> list[str]:
    return NAMES.read_text().split()


def savable() -> Iterator[str]:
    """Yield the places of modules and results, of what builds them, and of what the code of graphs calls."""
    for package in (passes, rewriter):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(found.name)
            for name, value in vars(module).items():
                if getattr(value, "__module__", None) != module.__name__ or not inspect.isclass(value):
                    continue
                # What is private to a file is in no result.
                if not name.startswith("_") and (issubclass(value, nn.Module) or module.__name__ in RESULTS):
                    yield f"{module.__name__}:{name}"
    for name, value in vars(leaf_functions).items():
        # What ``leaf`` made.
        if inspect.isfunction(value) and hasattr(value, "__wrapped__"):
            yield f"{leaf_functions.__name__}:{name}"
    yield from (f"{proxies.__name__}:{name}" for name in proxies.FACTORIES)
    yield "passes.stand_in:blank"
    yield "passes.user_code.hooks:OwnHook"
    yield "passes.graph.graph_module:_rebuild"
    yield "passes.graph.tracer:GraphTracer"


def test_what_a_result_is_made_of_stays_where_it_is() -> None:
    for place in promised():
        module, name = place.split(":")
        assert hasattr(importlib.import_module(module), name), f"{place} is in results that users saved"


def test_what_is_new_is_promised_too() -> None:
    missing = sorted(set(savable()) - set(promised()))
    assert not missing, f"add them to {NAMES.name}: from the next release on they stay where they are"


@pytest.mark.parametrize("path", sorted(saved.FOLDER.glob("*.pt")), ids=lambda path: path.stem)
def test_saved_results_compute_what_their_layers_do(path: Path) -> None:
    results = torch.load(path, weights_only=False)
    layers = saved.layers()
    assert results.keys() == layers.keys()
    for name, layer in layers.items():
        x = saved.inputs(name)
        expected, own = layer(x), results[name]
        for got in (own["rolled"](x), own["flat"](x)):
            # The same sums of numbers below 10, some in another order, in float32.
            torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)
        assert own["rolled"].report.layers or name in ("transformer", "convolution", "writes")
        assert own["equivalence"].equal


def test_what_the_code_of_a_saved_graph_imports_is_promised() -> None:
    named: set[str] = set()
    for name, layer in saved.layers().items():
        for result in (decompose(layer), decompose(layer, saved.inputs(name))):
            named |= {
                f"{node.target.__module__}:{node.target.__name__}"
                for node in getattr(getattr(result, "graph", None), "nodes", ())
                if node.op == "call_function" and node.target.__module__.startswith(("passes", "rewriter"))
            }
    assert {"passes.graph.leaf_functions:with_item", "passes.frontends.proxies:zeros"} <= named
    assert named <= set(promised())
