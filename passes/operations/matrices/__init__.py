"""Inverses, determinants, factors and other functions of matrices."""
