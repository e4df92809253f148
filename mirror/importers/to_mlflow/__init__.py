"""Mirrored runs to an MLflow server."""
