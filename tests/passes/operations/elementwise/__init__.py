"""Tests of ``passes.operations.elementwise``."""
