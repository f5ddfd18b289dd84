"""The properties: what is drawn, and what must hold for it."""

from __future__ import annotations

import importlib.util

from tests.fuzz import forms
from tests.fuzz.across_frameworks.drawing import keras_models
from tests.fuzz.computing import computes_the_same
from tests.fuzz.explaining import sums_up
from tests.fuzz.few_features import few_features, values_are_shapleys
from tests.fuzz.layers import layer_is_the_same, layers
from tests.fuzz.programs import Drawn, programs
from tests.fuzz.running import Property
from tests.fuzz.tilings import tiling_does_not_matter, tilings

_RULED = forms.EXACT + forms.RECURRENT

PROPERTIES = [
    Property("models compute the same", programs(_RULED), computes_the_same, 15),
    Property("explanations of models add up", programs(_RULED), sums_up, 15),
    Property("what has no rule is named", programs(_RULED, 3, forms.WITHOUT_RULE), sums_up, 15),
    Property("odd modules compute the same", programs(forms.ALL, 2, forms.ODD), computes_the_same, 15),
    Property("explanations of odd modules add up", programs(forms.ALL, 2, forms.ODD), sums_up, 15),
    Property("layers are the same", layers(), layer_is_the_same, 20),
    Property("tilings do not matter", tilings(), tiling_does_not_matter, 4),
    Property("few features get Shapley values", few_features(), values_are_shapleys, 20),
]

if all(importlib.util.find_spec(each) for each in ("keras", "tensorflow", "shap")):

    def _frameworks_agree(example: Drawn) -> str:
        # TensorFlow takes seconds to come: only when it is used.
        from tests.fuzz.across_frameworks.same import frameworks_agree

        return frameworks_agree(example)

    PROPERTIES.append(Property("frameworks agree", keras_models(), _frameworks_agree, 6))
