"""The extra ``shap``: stock shap is exact on the rewritten model, and explanations are shap's."""

from __future__ import annotations

import numpy as np
import shap
from models import built, sum_error

from rewriter import DeepExplainer, decompose

model, background, x = built()
stock = shap.DeepExplainer(decompose(model), background).shap_values(x)
assert sum_error(model, background, x, stock) < 1e-6
as_it_is = shap.DeepExplainer(model, background).shap_values(x, check_additivity=False)
assert sum_error(model, background, x, as_it_is) > 1e-3
explanation = DeepExplainer(model, background)(x)
assert isinstance(explanation, shap.Explanation)
assert np.abs(explanation.values - stock).max() < 1e-6
