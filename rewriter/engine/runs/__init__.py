"""Runs of the model that is explained."""
