"""Tests of ``passes.operations.products``."""
