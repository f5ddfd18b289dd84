"""The rule of a cell: its input and the state before are two players."""
