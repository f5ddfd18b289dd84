"""Loops of users' own in a graph: found, and rolled into recurrences that are explained as one sweep."""
