"""Rewrite recurrent PyTorch models into plain operations that explainers and exporters understand."""

from passes.errors import RewriteError
from rewriter import _captum, _shap
from rewriter._captum import register_captum
from rewriter._decompose import decompose, unroll
from rewriter._equivalence import assert_equivalent, check_equivalence
from rewriter._equivalence_report import EquivalenceReport
from rewriter._onnx import export_onnx
from rewriter._report import Report
from rewriter._shap import register_shap

__all__ = [
    "EquivalenceReport",
    "Report",
    "RewriteError",
    "assert_equivalent",
    "check_equivalence",
    "decompose",
    "export_onnx",
    "register_captum",
    "register_shap",
    "unroll",
]

_shap.register_when_imported()
_captum.register_when_imported()
