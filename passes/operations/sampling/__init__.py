"""Numbers that are read between the places of others."""
