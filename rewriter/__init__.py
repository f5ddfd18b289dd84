"""Rewrite recurrent PyTorch models into plain operations that explainers and exporters understand."""

import importlib
from typing import TYPE_CHECKING, Any

from rewriter.adapters.on_import import register_when_imported
from rewriter.version import __version__ as __version__

if TYPE_CHECKING:
    from passes.errors import RewriteError
    from passes.leaves import Atom
    from passes.operations.registered import register_rule
    from rewriter.adapters.captum import register_captum
    from rewriter.adapters.shap import register_shap
    from rewriter.compiler.decompose import decompose, unroll
    from rewriter.compiler.report import Report
    from rewriter.diagnosis.diagnose import Diagnosis, diagnose
    from rewriter.equivalence.check import assert_equivalent, check_equivalence
    from rewriter.equivalence.report import EquivalenceError, EquivalenceReport
    from rewriter.explainer.explainer import DeepExplainer
    from rewriter.html.report import html_report
    from rewriter.onnx.certificate.verify import verify
    from rewriter.onnx.export_onnx import ONNX_OPERATORS, export_onnx
    from rewriter.onnx_explainer.export_explainer_onnx import export_explainer_onnx
    from rewriter.references.compare import ReferenceReport, compare_references
    from rewriter.references.propose import propose_references

    from . import keras as keras
    from . import plot, ray

__all__ = [
    "ONNX_OPERATORS",
    "Atom",
    "DeepExplainer",
    "Diagnosis",
    "EquivalenceError",
    "EquivalenceReport",
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

# Imported at first use: nobody needs all of it.
_PLACES = {
    "ONNX_OPERATORS": "rewriter.onnx.export_onnx",
    "Atom": "passes.leaves",
    "DeepExplainer": "rewriter.explainer.explainer",
    "Diagnosis": "rewriter.diagnosis.diagnose",
    "EquivalenceError": "rewriter.equivalence.report",
    "EquivalenceReport": "rewriter.equivalence.report",
    "ReferenceReport": "rewriter.references.compare",
    "Report": "rewriter.compiler.report",
    "RewriteError": "passes.errors",
    "assert_equivalent": "rewriter.equivalence.check",
    "check_equivalence": "rewriter.equivalence.check",
    "compare_references": "rewriter.references.compare",
    "decompose": "rewriter.compiler.decompose",
    "diagnose": "rewriter.diagnosis.diagnose",
    "export_explainer_onnx": "rewriter.onnx_explainer.export_explainer_onnx",
    "export_onnx": "rewriter.onnx.export_onnx",
    "html_report": "rewriter.html.report",
    "propose_references": "rewriter.references.propose",
    "register_captum": "rewriter.adapters.captum",
    "register_rule": "passes.operations.registered",
    "register_shap": "rewriter.adapters.shap",
    "unroll": "rewriter.compiler.decompose",
    "verify": "rewriter.onnx.certificate.verify",
}

register_when_imported()


# What needs another library has its own room.
_ROOMS = ("keras", "plot", "ray")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"rewriter.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'rewriter' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
