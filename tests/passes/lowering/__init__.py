"""Tests of ``passes.lowering``."""
