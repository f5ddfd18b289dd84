"""Tests of :mod:`rewriter.plot`."""
