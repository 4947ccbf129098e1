"""Helpers that every package may import: errors, random streams, configuration, files, JSON Lines. No model code."""
