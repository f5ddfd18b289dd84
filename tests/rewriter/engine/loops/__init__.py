"""Tests of ``rewriter.engine.loops``."""
