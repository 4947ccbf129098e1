"""Implementations of the `ladder` commands, called by `cli.py` with parsed options."""
