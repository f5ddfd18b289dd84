"""Tests of ``rewriter.adapters``."""
