"""Evaluation: accuracy with confidence intervals, pass@k, ranking accuracy of reward models, best-of-n."""
