"""Run, copy and watch somebody else's code without touching it."""
