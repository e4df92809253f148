"""Sweeps: what their agents are told, and how the next run is chosen."""
