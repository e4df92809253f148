"""Objects shaped like those of `wandb.Api()`, answered by a mirror: same names, same defaults, no network."""

from mirror.objects.api import Api
from mirror.objects.run import Run, Runs

__all__ = ["Api", "Run", "Runs"]
