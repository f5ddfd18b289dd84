"""Tests of ``rewriter.engine.sweeps``."""
