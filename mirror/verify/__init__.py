"""Proof: whether the mirror's own files are whole, and whether another server holds the same, value by value."""
