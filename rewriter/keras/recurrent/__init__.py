"""Keras' recurrent layers as recurrences of atoms."""
