"""Functions that are linear in each of their operands."""
