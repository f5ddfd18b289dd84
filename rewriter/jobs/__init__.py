"""Explanations of data larger than memory, in parts that survive whatever ends the process."""
