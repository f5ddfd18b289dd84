"""The version of this library: pyproject.toml reads it here, and so does whoever asks."""

__version__ = "0.1.0"
