"""Losses, as scores to be explained."""
