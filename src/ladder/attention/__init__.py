"""Attention over packed sequences: the plan, and one implementation a file."""
