"""Evaluation: accuracy with intervals, pass@k, ranking by a reward model, best-of-n."""
