"""Parts built from a recipe's typed fields: models, samplers, tasks, rewards, losses, the behaviour policy."""
