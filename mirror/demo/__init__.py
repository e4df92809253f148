"""`mirror demo`: real training runs, logged through W&B's wire to an embedded server, mirrored and asked."""
