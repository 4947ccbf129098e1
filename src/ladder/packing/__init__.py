"""Sequences laid end to end without padding; common prefixes are stored once."""
