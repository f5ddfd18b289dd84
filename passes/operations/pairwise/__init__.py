"""Functions of two numbers, element by element."""
