"""The passes that use what is known of operations."""
