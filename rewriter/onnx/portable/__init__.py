"""Files that runtimes of few operators and old versions load."""
