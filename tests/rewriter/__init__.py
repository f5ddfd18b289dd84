"""Tests of ``rewriter``."""
