"""Maxima and minima, over dimensions and windows."""
