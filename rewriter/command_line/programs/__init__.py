"""Exported programs, read without running what they hold."""
