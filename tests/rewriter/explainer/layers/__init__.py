"""Tests of layers and neurons that ``rewriter.DeepExplainer`` explains."""
