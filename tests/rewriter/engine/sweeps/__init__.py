"""Tests of ``rewriter.engine.path``."""
