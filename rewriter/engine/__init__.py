"""Transport multipliers: samples linked to references, in one pass for all pairs."""
