"""Integers that embeddings look up: where they come from, and what they get."""
