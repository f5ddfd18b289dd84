"""Paths from a reference to a sample, along which attributions come nearer to Shapley values."""
