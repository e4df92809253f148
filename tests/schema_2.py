"""What `schema-2.tar.gz` holds. `write` made it, run by the last release that wrote schema version 2 (0.1.0)."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from mirror.records import (
    Artifact,
    ArtifactCollection,
    ArtifactEntry,
    ArtifactUse,
    Failure,
    Fetched,
    FileEntry,
    Item,
    ItemKey,
    Project,
    Report,
    Run,
    RunKey,
    Sweep,
    SyncReport,
)  # fmt: skip
from mirror.store import Writer

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)
SYSTEM = [{"_timestamp": 1.7e9 + i, "system.cpu": i * 1.5} for i in range(3)]
PROJECT = Project("lab", "me", "digits", "p1", "about", AT, 3)


def run_key(n: int) -> RunKey:
    return RunKey("lab", f"storage-{n}", "me", "digits", f"run{n}")


def _item_key(name: str) -> ItemKey:
    return ItemKey("lab", name, "me", "digits")


ITEMS: list[Item] = [
    Sweep(_item_key("s"), "abc", "A sweep", None, "RUNNING", "method: grid", 0.5, 7, "jo", AT, AT),
    ArtifactCollection(_item_key("c"), "model", "net", "a net", ("x",), AT, AT),
    Artifact(
        _item_key("a"), "model", "net", 3, "COMMITTED", "d1g", ("latest",), ("t",), "about", '{"a": NaN}', 10**13, 2, 5,
        run_entity="me", run_project="digits", run_id="run1", created_at=AT,
        entries=[ArtifactEntry("x", "d", 1), ArtifactEntry("y", "e", 2, ref="s3://b/y")],
        uses=[ArtifactUse("me", "digits", "run2", "in")],
    ),
    Report(_item_key("r"), "vw1", "runs", "Title", None, '{"blocks": []}', "jo", AT, AT),
]  # fmt: skip


def run(n: int, **more: Any) -> Run:
    return Run(
        run_key(n), name=f"run {n} é", state="finished", tags=("a", "b"), created_at=AT, updated_at=AT,
        metadata='{"program": "train.py"}', exit_code=0,
        config=json.dumps({"lr": {"value": n / 10}, "_wandb": {"value": {"t": {}}}}),
        summary=json.dumps({"loss": 1 / n, "big": 2**63 + n, "bad": "NaN"}), **more,
    )  # fmt: skip


def rows(n: int) -> list[dict[str, Any]]:
    return [
        {"_step": s // 2, "_timestamp": 1.7e9 + s, "loss": 1 / (s + 1), "a": {"b": s}, "a.b": str(s)} for s in range(n)
    ]


HISTORY = {1: rows(4), 2: rows(20), 3: rows(30)}
"""What the runs have in the end: the first one was rewound, the second one edited, the third one deleted."""


def write(root: Path) -> None:
    with Writer(root) as w:
        w.put_project(PROJECT)
        for n in (1, 2, 3):
            w.put_run(run(n), fingerprint=f"f{n}/memo")
            _put_history(w, n, rows(10 * n))
            w.append(run_key(n), "system", [json.dumps(row) for row in SYSTEM])
            w.publish(run_key(n), "system", Fetched("system", "rows", got=3, total=3))
            w.put_files(run_key(n), [FileEntry("b.txt", 3, "bWQ1"), FileEntry("media/a.png", 4)])
            w.put_logs(run_key(n), [(0, AT, "info", "hello"), (1, None, None, "wörld")])
        for item in ITEMS:
            w.put_item(item)
        w.quarantine(Failure(run_key(3), "files", "it broke", 1, AT + timedelta(days=9999)))
        w.log_sync(SyncReport("lab", "me", "digits", AT, AT, "partial", runs_listed=3, runs_new=3, rows=60))
    with Writer(root) as w:
        w.put_run(run(2, notes="edited"))
        w.begin(run_key(1), "history")
        _put_history(w, 1, rows(4))
        w.tombstone(run_key(3))
        w.log_sync(SyncReport("lab", "me", "digits", AT, AT, "ok", runs_listed=2, runs_changed=2, rows=4))


def _put_history(w: Writer, n: int, logged: list[dict[str, Any]]) -> None:
    w.append(run_key(n), "history", [json.dumps(row) for row in logged])
    w.publish(run_key(n), "history", Fetched("history", "rows", got=len(logged), total=len(logged)))
