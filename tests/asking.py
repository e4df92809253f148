"""A small mirror with known content, for the tests that ask."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import mirror
from mirror.records import Fetched, Run, RunKey
from mirror.store import Writer

T0 = datetime(2025, 1, 31, 12, tzinfo=timezone.utc)
HOSTILE = ["[/red]", "\x1b]0;x\x07", "two\nlines", "[bold]x[/bold]", "‮gnp.exe", "\x9b31m", "=1+1", 'a,"b"', "tab\there"]
"""Run names that would do harm if they reached a terminal as they are."""


def key(run_id: str, project: str = "digits", source: str = "lab.example") -> RunKey:
    return RunKey(source, f"storage-{source}-{project}-{run_id}", "team", project, run_id)


def wire(config: dict[str, Any]) -> str:
    return json.dumps({name: {"value": value} for name, value in config.items()} | {"_wandb": {"value": {"t": 1}}})


def loss(n: int, step: int) -> float:
    """What run n logged as its loss; run 3 diverges."""
    return math.nan if n == 3 and step >= 40 else n + 1 / (step + 1)


def fill(root: Path) -> Path:
    """Three runs of 50 rows in team/digits, a run for each hostile name in team/hostile, one path from two sources."""
    with mirror.open(root, write=True) as m:
        for n in (1, 2, 3):
            config = {"lr": n / 10, "layers": [n, 2], "opt": {"name": "adam", "beta": 0.9}, "seed": n, "a.b": n}
            summary = {"loss": loss(n, 49), "val/acc": n / 4, "best": {"step": n}}
            run = Run(
                key(f"run{n}"), name=f"run {n}", state="finished" if n < 3 else "crashed", tags=("t", f"v{n}"),
                group="g", job_type="train", notes=f"note {n}", created_at=T0 + timedelta(hours=n),
                heartbeat_at=T0 + timedelta(hours=n, seconds=90), config=wire(config), summary=json.dumps(summary),
                url=f"https://lab.example/team/digits/runs/run{n}", metadata=json.dumps({"program": "train.py"}),
            )  # fmt: skip
            m.put_runs([run])
            m.put_history(run, [{"_step": s, "_timestamp": 1.7e9 + s, "loss": loss(n, s), "n": s} for s in range(50)])
        for i, name in enumerate(HOSTILE):
            m.put_runs([Run(key(f"h{i}", "hostile"), name=name, notes=name, config=wire({"name": name, name: i}))])
        m.put_runs([Run(key("twin", "shared")), Run(key("twin", "shared", "other.example"))])
    return root


def incomplete(root: Path) -> None:
    """Add a run whose source said that it has more rows than came."""
    run = Run(key("short"), state="running", history_line_count=10)
    with Writer(root) as writer:
        writer.put_run(run)
        writer.append(run.key, "history", ['{"_step": 0, "loss": 1}'])
        writer.publish(
            run.key, "history", Fetched("history", "rows", got=1, total=10, complete=False, note="9 missing")
        )
