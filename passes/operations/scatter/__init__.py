"""Reductions over groups that an index names."""
