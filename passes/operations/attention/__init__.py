"""Attention and torch's transformer layers, made of other families."""
