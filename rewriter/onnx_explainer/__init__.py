"""Export an explanation as a model."""
