"""Tests of ``passes.operations.norms``."""
