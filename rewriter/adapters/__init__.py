"""Bind the rules to other people's explainers, for one call."""
