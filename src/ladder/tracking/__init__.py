"""Progress of a run: `metrics.jsonl`, experiment trackers, the console."""
