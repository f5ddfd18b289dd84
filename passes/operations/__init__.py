"""What is known of torch's operations: a room for each family, with its atoms, lowerings and rules."""
