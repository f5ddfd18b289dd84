"""Tests of ``rewriter.explainer``."""
