"""The documentation: its code, its names, its pages."""
