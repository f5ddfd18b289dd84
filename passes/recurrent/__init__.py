"""Recurrent layers: cells made of atoms, the loop around them, and the layers they stand in for."""
