"""Tests of rewriter.command_line.programs."""
