"""Tests of ``rewriter.equivalence``."""
