"""Runs, sweeps, artifacts and reports as objects, in the shapes people know from `wandb.Api()`, read from a mirror.

import mirror
api = mirror.Api()                                    # MIRROR_ROOT, then ./wandb-mirror
run = api.run("my-team/my-project/1a2b3c4d")
for row in run.scan_history():
    print(row["_step"], row["loss"])
"""

from mirror.objects.api import Api
from mirror.objects.attrs import ArgumentError, OfflineError
from mirror.objects.histogram import Histogram
from mirror.objects.run import Run
from mirror.objects.runs import Runs
from mirror.objects.summary import Summary

__all__ = ["Api", "ArgumentError", "Histogram", "OfflineError", "Run", "Runs", "Summary"]
