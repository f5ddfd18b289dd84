"""Write the file of this version."""

from importlib.metadata import version

from tests.support.saved import FOLDER, save

save(FOLDER / f"{version('rnn-rewriter')}.pt")
