"""Histories as they are read: by rows, samples and exports, and what forks and rewinds make of them."""
