"""The extra ``ray``: the batches of a data set are explained."""

from __future__ import annotations

import ray.data
import torch
from models import built, sum_error

from rewriter.ray import Attributor

model, background, x = built()
found = Attributor(model, background)({"x": x.numpy()})
assert (
    sum_error(
        model, background, x, next(torch.as_tensor(each) for key, each in found.items() if "values" in key)
    )
    < 1e-6
)
assert ray.data.from_items([{"a": 1}]).count() == 1
