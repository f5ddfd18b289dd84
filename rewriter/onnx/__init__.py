"""Export without recurrent operators."""
