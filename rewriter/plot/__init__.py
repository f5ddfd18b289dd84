"""Pictures of explanations of sequences, in the manner of ``shap.plots``, and of what was rewritten.

Each function takes axes or a figure to draw in, makes one if there is none, and returns it. matplotlib is
imported when something is drawn: ``pip install 'rnn-rewriter[plots]'``.
"""

from rewriter.plot.by_gate import gate_values, gates
from rewriter.plot.cost_front import front
from rewriter.plot.heat_map import heatmap
from rewriter.plot.rewritten import rewrite
from rewriter.plot.several_references import references
from rewriter.plot.text import tokens
from rewriter.plot.time_lines import over_time

__all__ = ["front", "gate_values", "gates", "heatmap", "over_time", "references", "rewrite", "tokens"]
