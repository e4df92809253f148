"""Runs out of the mirror to another server, whatever their source, and the account of what arrived."""

from mirror.importers.places import Namespace

__all__ = ["Namespace"]
