"""Rewrite recurrent PyTorch models into plain operations that explainers and exporters understand."""

import importlib
from typing import TYPE_CHECKING, Any

from passes.errors import RewriteError
from rewriter import _captum, _shap
from rewriter._captum import register_captum
from rewriter._decompose import decompose, unroll
from rewriter._report import Report
from rewriter._shap import register_shap

if TYPE_CHECKING:
    from rewriter._diagnose import Diagnosis, diagnose
    from rewriter._equivalence import assert_equivalent, check_equivalence
    from rewriter._equivalence_report import EquivalenceReport
    from rewriter._explainer import DeepExplainer
    from rewriter._onnx import ONNX_OPERATORS, export_onnx

__all__ = [
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

# Imported at first use: many users need none of them.
_LATER = {
    "ONNX_OPERATORS": "rewriter._onnx",
    "DeepExplainer": "rewriter._explainer",
    "Diagnosis": "rewriter._diagnose",
    "EquivalenceReport": "rewriter._equivalence_report",
    "assert_equivalent": "rewriter._equivalence",
    "check_equivalence": "rewriter._equivalence",
    "diagnose": "rewriter._diagnose",
    "export_onnx": "rewriter._onnx",
}

_shap.register_when_imported()
_captum.register_when_imported()


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'rewriter' has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)
