"""The extra ``captum``: DeepLiftShap is exact on the rewritten model."""

from __future__ import annotations

import warnings

import torch
from captum.attr import DeepLiftShap
from models import built, sum_error

from rewriter import decompose

model, background, x = built()
with warnings.catch_warnings():
    # captum says at each call that it sets hooks.
    warnings.simplefilter("ignore")
    explainer = DeepLiftShap(decompose(model))
    values = torch.stack([explainer.attribute(x, background, target=k) for k in range(2)], -1)
assert sum_error(model, background, x, values.detach()) < 1e-6
