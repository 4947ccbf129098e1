"""Recipes of stages: what a run is made of, in which order, and how it goes on after it was interrupted."""
