"""The command ``rewriter``."""
