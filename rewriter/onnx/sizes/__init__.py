"""Which axes of an input may have any size, what an export assumed of them, and sizes to try."""
