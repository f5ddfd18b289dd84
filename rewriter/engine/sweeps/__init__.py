"""Recurrences in the engine: a fast forward pass, and a sweep back in time."""
