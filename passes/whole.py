"""All that makes a whole model exact, beside its recurrent layers: one table of modules, one of calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from passes import activations, products
from passes.lower_calls import Lowering
from passes.module_lowerings import Build

MODULES: Mapping[type[nn.Module], Build] = {**activations.MODULES}
CALLS: Mapping[Any, Lowering] = {**activations.CALLS, **products.CALLS}
