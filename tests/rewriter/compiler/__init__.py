"""Tests of ``rewriter.compiler``."""
