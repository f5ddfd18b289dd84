"""Tests of ``passes.recurrent``."""
