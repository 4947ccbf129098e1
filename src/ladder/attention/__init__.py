"""Attention over packed sequences: the plan, and one file for each implementation."""
