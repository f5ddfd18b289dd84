"""Torch's own modules, by its own database of their inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.testing._internal.common_modules import module_db
from torch.utils import _pytree as pytree

from tests.census.batched import RowByRow, inputs_of, models_of
from tests.census.entries import Finding
from tests.census.judging import InCode, graph_of, judged
from tests.census.samples import DOUBLE, ROWS, Drawn, apart, varies, with_derivative

# What torch makes of an entry may need a device that is not there.
MODULES = [each for each in module_db if DOUBLE in each.dtypes]


def findings_of_module(info: Any, count: int) -> Iterator[Finding]:
    """Yield what is found of a module, of its first inputs, in evaluation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = _inputs(info)
    used = 0
    for k, each in enumerate(given):
        if used == count:
            return
        if each.forward_input is None:
            continue
        sample = _sample(info, each)
        model = None if sample is None else next(models_of(sample), None)
        if sample is None or model is None:
            continue
        used += 1
        x = inputs_of(sample)
        for form, make in (("graph", lambda: graph_of(model, x)), ("code", lambda: InCode(model))):  # noqa: B023
            explained = None if form == "graph" and isinstance(model, RowByRow) else make()
            if explained is not None:
                found = judged(explained, model, x, [info.name, info.module_cls.__name__])
                yield Finding(k, tuple(sample.rows), form, model.name, *found)


def _inputs(info: Any) -> list[Any]:
    torch.manual_seed(0)
    try:
        return list(
            info.module_inputs_func(info, device="cpu", dtype=DOUBLE, requires_grad=False, training=False)
        )
    except Exception:
        return []


def _sample(info: Any, given: Any) -> Drawn | None:
    torch.manual_seed(0)
    made = given.constructor_input
    try:
        module = info.module_cls(*made.args, **made.kwargs).to(DOUBLE).eval()
    except Exception:
        return None
    leaves, spec = pytree.tree_flatten((given.forward_input.args, given.forward_input.kwargs))
    places = with_derivative(module, leaves, spec, [k for k, each in enumerate(leaves) if varies(each)])
    if not places or sum(leaves[k].numel() for k in places) > 1500:
        return None
    rows = {k: apart([leaves[k].detach()] * ROWS) for k in places}
    return Drawn(_called(module), tuple(leaves), spec, rows)


def _called(module: torch.nn.Module) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return module(*args, **kwargs)

    return call
