"""Tests of ``passes.operations``."""
