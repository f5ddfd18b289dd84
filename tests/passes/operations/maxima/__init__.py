"""Tests of ``passes.operations.maxima``."""
