"""What every part uses and that knows nothing of models: errors, random streams, configuration, files, JSON Lines."""
