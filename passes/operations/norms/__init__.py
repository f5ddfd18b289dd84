"""Normalisations, variances, lengths of vectors."""
