"""Logging the demo's runs: through the real SDK where it is installed, else by the requests it would send.

    python -m mirror.demo.logging sdk|wire FIRST STEP

logs every STEP-th trial from FIRST on to WANDB_BASE_URL with WANDB_API_KEY.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.util import find_spec
from typing import Any

from mirror.demo.training import ENTITY, PROJECT, Trial, train, trials


def road() -> str:
    """`sdk` if the `wandb` package is installed, else `wire`."""
    return "sdk" if find_spec("wandb") else "wire"


def log_by_sdk(trial: Trial) -> None:
    import wandb

    settings = wandb.Settings(silent=True, console="off", x_disable_stats=False, disable_git=True, save_code=False)
    config = {"lr": trial.lr, "width": trial.width, "seed": trial.seed}
    run = wandb.init(
        entity=ENTITY, project=PROJECT, id=trial.run_id, name=trial.name, config=config, settings=settings,
        group=f"width{trial.width}", tags=["demo"],
    )  # fmt: skip
    try:
        for row in train(trial):
            run.log(row)
    except RuntimeError:
        run.finish(exit_code=1)
    else:
        run.finish()


def log_by_wire(trial: Trial) -> None:
    """The same with three requests: make the run, stream its lines, end it."""
    import requests

    base = os.environ["WANDB_BASE_URL"].rstrip("/")
    with requests.Session() as session:
        session.auth = ("api", os.environ["WANDB_API_KEY"])
        config = {"lr": trial.lr, "width": trial.width, "seed": trial.seed}
        variables = {
            "entity": ENTITY,
            "project": PROJECT,
            "name": trial.run_id,
            "displayName": trial.name,
            "groupName": f"width{trial.width}",
            "tags": ["demo"],
            "config": json.dumps({k: {"value": v} for k, v in config.items()}),
        }
        made = session.post(f"{base}/graphql", json={"query": _UPSERT, "variables": variables}, timeout=30)
        made.raise_for_status()
        started, exit_code = time.time(), 0
        lines: list[str] = []
        summary: dict[str, float | None] = {}
        try:
            for step, row in enumerate(train(trial)):
                now = time.time()
                logged = {**row, "_step": step, "_timestamp": now, "_runtime": now - started}
                summary |= logged
                lines.append(json.dumps(logged))
        except RuntimeError:
            exit_code = 1
        wanted = {k: None if v != v else v for k, v in summary.items()}  # as the SDK does with NaN
        body: dict[str, Any] = {
            "files": {
                "wandb-history.jsonl": {"offset": 0, "content": lines},
                "wandb-summary.json": {"offset": 0, "content": [json.dumps(wanted)]},
            },
            "complete": True,
            "exitcode": exit_code,
        }
        url = f"{base}/files/{ENTITY}/{PROJECT}/{trial.run_id}/file_stream"
        session.post(url, json=body, timeout=30).raise_for_status()


_UPSERT = """
mutation UpsertBucket($name: String, $project: String, $entity: String, $displayName: String, $groupName: String,
                      $config: JSONString, $tags: [String!]) {
  upsertBucket(input: {name: $name, modelName: $project, entityName: $entity, displayName: $displayName,
                       groupName: $groupName, config: $config, tags: $tags}) { bucket { id } inserted }
}
"""


if __name__ == "__main__":
    log = {"sdk": log_by_sdk, "wire": log_by_wire}[sys.argv[1]]
    for one in trials()[int(sys.argv[2]) :: int(sys.argv[3])]:
        log(one)
        print(one.name, flush=True)
