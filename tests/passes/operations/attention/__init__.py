"""Tests of ``passes.operations.attention``."""
