"""Compare a rewritten model with its original."""
