"""Runs as objects, in the shapes people know from `wandb.Api()`, read from a mirror.

import mirror
api = mirror.Api()                                    # MIRROR_ROOT, then ./wandb-mirror
run = api.run("my-team/my-project/1a2b3c4d")
for row in run.scan_history():
    print(row["_step"], row["loss"])
"""

from mirror.objects.api import Api
from mirror.objects.run import Run, Summary
from mirror.objects.runs import Runs

__all__ = ["Api", "Run", "Runs", "Summary"]
