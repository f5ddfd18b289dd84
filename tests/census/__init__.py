"""What the library says of every operation that torch lists: exact, or refused by name."""
