"""What is released, installed where nothing else is."""
