"""What runs that came from MLflow are at W&B: their config, their points as rows, their models as artifacts."""
