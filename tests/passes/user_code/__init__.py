"""Tests of ``passes.user_code``."""
