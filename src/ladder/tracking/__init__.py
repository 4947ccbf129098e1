"""What a run reports: metrics.jsonl first, then trackers and the console."""
