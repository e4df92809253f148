"""Where runs come from. A source lists runs and yields records (`protocol`); `wandb` is a W&B server."""
