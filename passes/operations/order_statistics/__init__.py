"""Sorting, and what is read off sorted elements: the largest few, medians, quantiles."""
