"""Tests of ``passes``."""
