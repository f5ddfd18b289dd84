"""Exported files in other runtimes, each where it is installed; `make runtimes` installs them all."""
