"""The mechanism of rewriter: graph in, graph out. Use :mod:`rewriter`; this package is its inside."""
