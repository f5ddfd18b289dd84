"""What the rules are held against: functions and formulas restated, sharing no code with the library."""
