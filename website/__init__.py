"""What ``make docs`` does besides MkDocs itself: its hooks, and the figures that it draws."""
