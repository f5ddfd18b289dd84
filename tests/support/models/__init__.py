"""Models that tests run."""
