"""Tests of ``rewriter.references``."""
