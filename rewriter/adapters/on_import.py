"""Have shap and captum learn our atoms whenever they are imported, at no cost to who imports neither."""

from __future__ import annotations

import wrapt

#: Where shap keeps its rules.
RULES_OF_SHAP = "shap.explainers._deep.deep_pytorch"
#: Captum's DeepLIFT explainers, by module.
EXPLAINERS = {
    "captum.attr._core.deep_lift": ("DeepLift", "DeepLiftShap"),
    "captum.attr._core.layer.layer_deep_lift": ("LayerDeepLift", "LayerDeepLiftShap"),
    "captum.attr._core.neuron.neuron_deep_lift": ("NeuronDeepLift", "NeuronDeepLiftShap"),
}


def register_when_imported() -> None:
    """Have the registrations follow the imports of shap and captum, in whatever order.

    Example:
        >>> register_when_imported()

    """
    wrapt.register_post_import_hook("rewriter.adapters.shap:teach", RULES_OF_SHAP)
    for name in EXPLAINERS:
        wrapt.register_post_import_hook("rewriter.adapters.captum:teach", name)
