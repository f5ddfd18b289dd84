"""References for sequences: what to compare samples with, and how much explanations depend on that."""
