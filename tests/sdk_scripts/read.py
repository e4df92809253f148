"""Reads the project `versions` as scripts do, and prints what it found as JSON.

python read.py DOWNLOADS
"""

import json
import sys
from pathlib import Path

import wandb


def read(run, downloads):
    files = sorted(f.name for f in run.files())
    notes = next((f for f in run.files() if f.name == "notes.txt"), None)
    text = None
    if notes is not None:
        notes.download(root=str(downloads / run.id), replace=True)
        text = (downloads / run.id / "notes.txt").read_text()
    return {
        "scan": list(run.scan_history()),
        "keys": list(run.scan_history(keys=["loss", "_step"])),
        "history": run.history(samples=7, pandas=False),
        "system": len(run.history(stream="events", pandas=False)),
        "config": dict(run.config),
        "summary": dict(run.summary._json_dict),
        "name": run.name,
        "notes": run.notes,
        "tags": sorted(run.tags),
        "group": run.group,
        "job_type": run.job_type,
        "state": run.state,
        "path": "/".join(run.path),
        "files": files,
        "text": text,
    }


def main(downloads):
    api = wandb.Api(timeout=60)
    runs = api.runs("local/versions", order="+created_at")
    filtered = api.runs(
        "local/versions", filters={"$and": [{"config.layers": 3}, {"summary_metrics.best": {"$lt": 1}}]}
    )
    found = {
        "version": wandb.__version__,
        "projects": sorted(project.name for project in api.projects("local")),
        "count": len(runs),
        "filtered": sorted(run.id for run in filtered),
        "runs": {run.id: read(api.run("local/versions/" + run.id), Path(downloads)) for run in runs},
        "missing": None,
    }
    try:
        api.run("local/versions/nothing")
    except Exception as error:
        found["missing"] = type(error).__name__
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
