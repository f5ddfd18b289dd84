"""The extra ``plots``: a picture is drawn."""

from __future__ import annotations

import matplotlib as mpl
from models import built

from rewriter import DeepExplainer, plot

mpl.use("Agg")
model, background, x = built()
figure = plot.heatmap(DeepExplainer(model, background)(x)[0, :, :, 0])
figure.savefig("heatmap.png")
