"""Tests of ``rewriter.diagnosis``."""
