"""Tests of ``passes.operations.softmax``."""
