"""Tests of ``rewriter.engine``."""
