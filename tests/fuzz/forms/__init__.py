"""The lines that drawn models are made of, by what they call for."""

from __future__ import annotations

from tests.fuzz.forms import elementwise, linear, modules, nonlinear, odd, without_rule
from tests.fuzz.forms.form import Kinds

#: What the documentation promises a rule for.
EXACT = Kinds(
    "exact",
    (
        *elementwise.OF_ONE,
        *elementwise.OF_TWO,
        *linear.ANYWHERE,
        *linear.SEQUENCES,
        *nonlinear.ANYWHERE,
        *nonlinear.SEQUENCES,
        *modules.ANYWHERE,
        *modules.SEQUENCES,
    ),
)
RECURRENT = Kinds("recurrent", tuple(modules.RECURRENT))
WITHOUT_RULE = Kinds("without a rule", (*without_rule.ANYWHERE, *without_rule.CONTROL))
ODD = Kinds("odd", tuple(odd.ODD))
ALL = EXACT + RECURRENT + WITHOUT_RULE + ODD
