"""Tests of :mod:`rewriter.html`."""
