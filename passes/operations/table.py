"""All that makes a whole model exact, beside its recurrent layers: one table of modules, one of calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from passes.operations.attention import dot_product as attention
from passes.operations.attention import transformer
from passes.operations.contract import Build, Lowering, Textbook, Varies
from passes.operations.elementwise import lowering as activations
from passes.operations.maxima import extrema, pooling
from passes.operations.norms import similarity, variance, vector_norms
from passes.operations.norms import standardize as norms
from passes.operations.pairwise import lowering as pairwise
from passes.operations.products import lowering as products
from passes.operations.products import running_products
from passes.operations.softmax import atoms as softmax

MODULES: Mapping[type[nn.Module], Build] = {
    **activations.MODULES,
    **softmax.MODULES,
    **norms.MODULES,
    **similarity.MODULES,
    **products.MODULES,
    **attention.MODULES,
    **transformer.MODULES,
    **pooling.MODULES,
}


def _in_turn(*tables: Mapping[Any, Lowering]) -> dict[Any, Lowering]:
    """Merge tables; where several know a function, the first that lowers a call of it does."""
    merged: dict[Any, Lowering] = {}
    for table in tables:
        for target, lowering in table.items():
            merged[target] = _first(merged[target], lowering) if target in merged else lowering
    return merged


def _first(*lowerings: Lowering) -> Lowering:
    def lower(varies: Varies, *args: Any, **kwargs: Any) -> Textbook | None:
        return next((done for each in lowerings if (done := each(varies, *args, **kwargs))), None)

    return lower


CALLS: Mapping[Any, Lowering] = _in_turn(
    activations.CALLS,
    products.CALLS,
    running_products.CALLS,
    attention.CALLS,
    softmax.CALLS,
    norms.CALLS,
    variance.CALLS,
    vector_norms.CALLS,
    similarity.CALLS,
    extrema.CALLS,
    pairwise.CALLS,
    pooling.CALLS,
)
