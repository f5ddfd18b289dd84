"""Tests of ``passes.frontends``."""
