"""Reads runs through the real `wandb.Api`, in a process of its own with caches of its own.

    python tests/readback.py WANTED.pickle FOUND.pickle

WANTED: list of (path, windows), a window being (min_step, max_step); FOUND: list of dicts.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any


def read(api: Any, path: str, windows: list[tuple[int, int]]) -> dict[str, Any]:
    run = api.run(path)
    rows = [row for low, high in windows for row in run.scan_history(min_step=low, max_step=high, page_size=high - low)]
    return {
        "rows": rows,
        "config": dict(run.config),
        "summary": dict(run.summary._json_dict),
        "events": run.history(stream="system", samples=100_000, pandas=False),
        "state": run.state,
        "name": run.name,
        "notes": run.notes,
        "tags": list(run.tags),
        "group": run.group,
        "job_type": run.job_type,
    }


def main(wanted: str, found: str) -> None:
    import wandb

    api = wandb.Api(timeout=300)
    read_back = [read(api, path, windows) for path, windows in pickle.loads(Path(wanted).read_bytes())]
    Path(found).write_bytes(pickle.dumps(read_back))


if __name__ == "__main__":
    main(*sys.argv[1:])
