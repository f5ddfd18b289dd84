"""Tests of both packages, which mirror their folders."""
