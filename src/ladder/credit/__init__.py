"""Credit assignment: how judged groups of rollouts become trained samples with their columns."""
