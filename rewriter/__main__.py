"""``python -m rewriter``: the command line."""

from rewriter.command_line.entry import main

if __name__ == "__main__":
    main()
