"""A plugin of pytest: proofs about models as fixtures, with a summary at the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    # pytest loads this in every run, also of projects that do not use it: torch is imported at first use.
    from rewriter.equivalence.report import EquivalenceReport
    from rewriter.explainer.explainer import DeepExplainer
    from rewriter.onnx.export_onnx import OnnxReport

_FIXTURES = {"assert_equivalent", "assert_additive", "assert_exportable"}
_PROPERTY = "rewriter"
_PROVEN = pytest.StashKey[list["Proof"]]()


class Proof(NamedTuple):
    """What one call of a fixture showed.

    Args:
        test: id of the test.
        what: ``equivalent``, ``additive`` or ``exportable``.
        model: name of its class.
        worst: the largest relative error.

    """

    test: str
    what: str
    model: str
    worst: float


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--rewriter-report``."""
    group = parser.getgroup("rewriter", "proofs about models")
    group.addoption(
        "--rewriter-report", type=Path, metavar="FILE", help="Write what was proven: .json, else Markdown."
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers", "rewriter: uses a proof of rewriter; added to tests that take its fixtures"
    )
    config.stash[_PROVEN] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes one of the fixtures, so that ``-m rewriter`` runs the proofs alone."""
    for item in items:
        if _FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.rewriter)


@pytest.fixture
def assert_equivalent(request: pytest.FixtureRequest) -> Callable[..., EquivalenceReport]:
    """Return a function that fails unless a rewritten model computes what the original computes.

    It takes the original, example inputs, and the rewritten model, which is ``decompose(original)`` where it
    is left out, and options of :func:`rewriter.check_equivalence`; it returns the report.
    """

    def check(original: Any, example_inputs: Any, rewritten: Any = None, **options: Any) -> EquivalenceReport:
        __tracebackhide__ = True
        from rewriter.compiler.decompose import decompose
        from rewriter.equivalence.check import check_equivalence
        from rewriter.equivalence.report import EquivalenceError

        other = decompose(original, example_inputs) if rewritten is None else rewritten
        report = check_equivalence(original, other, example_inputs, **options)
        if not report.equal:
            raise EquivalenceError(report)
        worst = max((each.relative for each in report.comparisons), default=0.0)
        _note(request, "equivalent", original, worst)
        return report

    return check


@pytest.fixture
def assert_additive(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Return a function that fails unless the SHAP values of samples sum to the change of the output.

    It takes the model, the background, samples, the largest error relative to the largest change (1e-5), and
    options of :class:`rewriter.DeepExplainer`; it returns the values.
    """

    def check(model: Any, background: Any, x: Any, *, tolerance: float = 1e-5, **options: Any) -> Any:
        __tracebackhide__ = True
        from rewriter.explainer.explainer import DeepExplainer

        explainer = DeepExplainer(model, background, progress=False, **options)
        values = explainer.shap_values(x)
        worst = _gap(explainer, x, values)
        if not worst <= tolerance:
            pytest.fail(
                f"{_class_of(model)}: SHAP values miss the change of the output by {worst:.1e} of the "
                f"largest change, more than {tolerance:.0e}; rewriter.diagnose(model, x, background) names "
                "the operation"
            )
        _note(request, "additive", model, worst)
        return values

    return check


@pytest.fixture
def assert_exportable(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., OnnxReport]:
    """Return a function that fails unless a model can be written as ONNX that computes the same.

    It takes the model, example inputs, a path (a temporary one by default), and options of
    :func:`rewriter.export_onnx`; it returns the report.
    """

    def check(model: Any, example_inputs: Any, path: Path | None = None, **options: Any) -> OnnxReport:
        __tracebackhide__ = True
        from rewriter.onnx.export_onnx import export_onnx

        report = export_onnx(model, example_inputs, path or tmp_path / "model.onnx", **options)
        _note(request, "exportable", model, max(report.errors.values()))
        return report

    return check


def _class_of(model: Any) -> str:
    return type(model[0] if isinstance(model, tuple) else model).__name__


def _gap(explainer: DeepExplainer, x: Any, values: Any) -> float:
    """Return the largest error of the sums, relative to the largest change, by the model as it is."""
    import numpy as np

    from rewriter.explainer.arguments import samples_of

    samples = samples_of(x, explainer._data, explainer._multi_input)
    outputs, base = (
        explainer._original.outputs(each).flatten(1).double().cpu().numpy()
        for each in (samples, explainer._data)
    )
    change = outputs - base.mean(0)
    several = values if isinstance(values, list) else [values]
    sums = sum(each.reshape(len(change), -1, change.shape[1]).sum(1) for each in several)
    scale = float(np.abs(change).max())
    return float(np.abs(sums - change).max()) / (scale or 1.0)


def _note(request: pytest.FixtureRequest, what: str, model: Any, worst: float) -> None:
    # Properties come along with the report of a test from whatever process ran it.
    request.node.user_properties.append((_PROPERTY, (what, _class_of(model), worst)))


class _Collected:
    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            noted: Any = report.user_properties
            found = [each for name, each in noted if name == _PROPERTY]
            self.config.stash[_PROVEN] += [Proof(report.nodeid, *each) for each in found]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Collect what tests note, in the process that reports."""
    if not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(_Collected(session.config))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Show what was proven, and write it where ``--rewriter-report`` says."""
    proven = config.stash[_PROVEN]
    path: Path | None = config.getoption("--rewriter-report")
    if path is not None:
        text = (
            json.dumps([each._asdict() for each in proven], indent=2)
            if path.suffix == ".json"
            else _table(proven)
        )
        path.write_text(text + "\n", encoding="utf-8")
    if not proven:
        return
    terminalreporter.section("rewriter")
    for what in dict.fromkeys(each.what for each in proven):
        worst = max((each for each in proven if each.what == what), key=lambda each: each.worst)
        count = sum(each.what == what for each in proven)
        terminalreporter.write_line(f"{count} {what}, worst relative error {worst.worst:.1e} in {worst.test}")


def _table(proven: list[Proof]) -> str:
    tests = [each.test.replace("|", r"\|") for each in proven]
    rows = [
        f"| {test} | {each.what} | {each.model} | {each.worst:.1e} |"
        for test, each in zip(tests, proven, strict=True)
    ]
    return "\n".join(["| test | proven | model | worst relative error |", "|---|---|---|---|", *rows])
