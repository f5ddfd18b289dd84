"""What an exported file was checked for, written beside it, and checked again anywhere."""
