"""Packing: sequences concatenated without padding, with shared prefixes stored once."""
