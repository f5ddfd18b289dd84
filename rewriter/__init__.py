"""Rewrite recurrent PyTorch models into plain operations that explainers and exporters understand."""

import importlib
from typing import TYPE_CHECKING, Any

from rewriter._hooks import register_when_imported

if TYPE_CHECKING:
    from passes.errors import RewriteError
    from rewriter._captum import register_captum
    from rewriter._decompose import decompose, unroll
    from rewriter._diagnose import Diagnosis, diagnose
    from rewriter._equivalence import assert_equivalent, check_equivalence
    from rewriter._equivalence_report import EquivalenceReport
    from rewriter._explainer import DeepExplainer
    from rewriter._onnx import ONNX_OPERATORS, export_onnx
    from rewriter._report import Report
    from rewriter._shap import register_shap

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

# Imported at first use: nobody needs all of it.
_PLACES = {
    "ONNX_OPERATORS": "rewriter._onnx",
    "DeepExplainer": "rewriter._explainer",
    "Diagnosis": "rewriter._diagnose",
    "EquivalenceReport": "rewriter._equivalence_report",
    "Report": "rewriter._report",
    "RewriteError": "passes.errors",
    "assert_equivalent": "rewriter._equivalence",
    "check_equivalence": "rewriter._equivalence",
    "decompose": "rewriter._decompose",
    "diagnose": "rewriter._diagnose",
    "export_onnx": "rewriter._onnx",
    "register_captum": "rewriter._captum",
    "register_shap": "rewriter._shap",
    "unroll": "rewriter._decompose",
}

register_when_imported()


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'rewriter' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
