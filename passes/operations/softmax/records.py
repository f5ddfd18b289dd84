"""Calls and modules of softmax and its kin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from passes.operations.contract import Build, Lowering, Rule, Textbook, Varies, known_dims, pulled
from passes.operations.operation import Operation, nonlinear
from passes.operations.softmax.atoms import (
    LogSoftmaxAtom,
    LogSumExp,
    RunningLogSumExp,
    SoftmaxAtom,
    SoftminAtoms,
)
from passes.operations.softmax.rule import (
    log_softmax_pull,
    logsumexp_pull,
    running_pull,
    softmax_pull,
)

_Along = type[SoftmaxAtom] | type[LogSoftmaxAtom] | type[SoftminAtoms]


def _along(build: _Along) -> Lowering:
    def lower(varies: Varies, input: Any, dim: Any = None, dtype: Any = None) -> Textbook | None:
        # A dimension that is itself computed is not known here.
        known = (dim is None or isinstance(dim, int)) and (dtype is None or isinstance(dtype, torch.dtype))
        return (build(dim, dtype), (input,)) if known else None

    return lower


def _logsumexp(varies: Varies, input: Any, dim: Any, keepdim: Any = False) -> Textbook | None:
    dims = known_dims(dim)
    return (LogSumExp(dims, keepdim), (input,)) if dims and isinstance(keepdim, bool) else None


def _logcumsumexp(varies: Varies, input: Any, dim: Any) -> Textbook | None:
    return (RunningLogSumExp(dim), (input,)) if type(dim) is int else None


def _module(build: _Along) -> Build:
    def build_module(module: Any) -> nn.Module:
        return build(module.dim)

    return build_module


def _softmax2d(_: nn.Softmax2d) -> nn.Module:
    return SoftmaxAtom(-3)


CALLS: tuple[Operation, ...] = (
    nonlinear("softmax(input, dim=None, dtype=None)", "_safe_softmax", lower=_along(SoftmaxAtom)),
    nonlinear("log_softmax(input, dim=None, dtype=None)", lower=_along(LogSoftmaxAtom)),
    nonlinear("softmin(input, dim=None, dtype=None)", lower=_along(SoftminAtoms)),
    nonlinear("logsumexp(input, dim, keepdim=False)", lower=_logsumexp),
    nonlinear("logcumsumexp(input, dim)", lower=_logcumsumexp),
)
MODULES: Mapping[type[nn.Module], Build] = {
    nn.Softmax: _module(SoftmaxAtom),
    nn.LogSoftmax: _module(LogSoftmaxAtom),
    nn.Softmin: _module(SoftminAtoms),
    nn.Softmax2d: _softmax2d,
}
RULES: Mapping[type[nn.Module], Rule] = {
    SoftmaxAtom: pulled(softmax_pull),
    LogSoftmaxAtom: pulled(log_softmax_pull),
    LogSumExp: pulled(logsumexp_pull),
    RunningLogSumExp: pulled(running_pull),
}
