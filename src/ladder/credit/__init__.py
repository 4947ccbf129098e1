"""Credit assignment: turns judged groups of rollouts into training samples with their columns."""
