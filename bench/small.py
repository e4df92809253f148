"""Many small syncs against a large one: the same content, and what it costs to ask for it.

    python bench/small.py [--syncs 10000] [--projects 1000] [--repeat 5]

Makes two mirrors of the same runs (20 rows of 5 keys each, in many projects): one by a sync for every run, each a
writing session of its own that commits, compacts and vacuums as `mirror sync` does, and one by a single session. Then
asks both the same questions. Prints files, sizes, and ratios. Segments that were replaced are deleted without their
period of grace, since syncs usually lie further apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

from mirror.query.sql import execute
from mirror.records import Fetched, Project, Run, RunKey, SyncReport
from mirror.store import Reader, Writer
from mirror.store.compact import vacuum

ROWS = 20


def put(writer: Writer, n: int, projects: int) -> None:
    name = f"p{n % projects:04}"
    key = RunKey("bench", f"s{n}", "me", name, f"run{n:05}")
    writer.put_project(Project("bench", "me", name, storage_id=name))
    config, summary = json.dumps({"lr": {"value": n % 7}}), json.dumps({"loss": n / 3})
    writer.put_run(Run(key, name=f"r{n}", state="finished", config=config, summary=summary))
    rows = [{"_step": s, "_timestamp": 1.7e9 + s, "loss": n / (s + 1), "acc": s / 3, "epoch": s} for s in range(ROWS)]
    writer.append(key, "history", [json.dumps(row) for row in rows])
    writer.publish(key, "history", Fetched("history", "rows", got=ROWS, total=ROWS, complete=True))


def sync(root: Path, n: int, projects: int) -> None:
    at = datetime.now(timezone.utc)
    with Writer(root) as writer:
        put(writer, n, projects)
        writer.log_sync(SyncReport("bench", "me", f"p{n % projects:04}", at, at, "ok", runs_listed=1, runs_new=1))
        writer.commit()
        writer.compact()
        vacuum(writer.layout, writer.catalog, grace=timedelta(0))


QUESTIONS = {
    "one metric over all runs": "select count(loss), sum(loss) from history_wide",
    "one run": "select _step, loss from history_wide where run_id = 'run00007' order by row",
    "one project": "select count(*), sum(value) from history where project = 'p0003'",
    "last value of every run": "select run_id, last_v from metrics where key = 'loss'",
    "configs": "select w.config.lr, count(*) from runs_wide w group by 1",
}


def ask(root: Path, repeat: int) -> dict[str, float]:
    """Median milliseconds by question."""
    took = {}
    began = time.perf_counter()
    with Reader(root) as reader:
        execute(reader, "select 1").fetchall()
        took["opening it"] = 1000 * (time.perf_counter() - began)
        for name, query in QUESTIONS.items():
            times = []
            for _ in range(repeat):
                began = time.perf_counter()
                execute(reader, query).fetchall()
                times.append(1000 * (time.perf_counter() - began))
            took[name] = statistics.median(times)
    return took


def sizes(root: Path) -> dict[str, float]:
    snapshot = json.loads((root / "snapshot.json").read_text())
    return {
        "live files": sum(len(t["files"]) for t in snapshot["tables"].values()),
        "live files of cells": len(snapshot["tables"]["history"]["files"]),
        "files on disk": len(list((root / "data").rglob("*.parquet"))),
        "MB of segments": sum(f.stat().st_size for f in (root / "data").rglob("*.parquet")) / 1e6,
        "kB of snapshot.json": (root / "snapshot.json").stat().st_size / 1e3,
        "kB of catalog": (root / "catalog.sqlite").stat().st_size / 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--syncs", type=int, default=10_000)
    parser.add_argument("--projects", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-small-") as place:
        many, one = Path(place) / "many", Path(place) / "one"
        parts: list[float] = []
        for n in range(args.syncs):
            began = time.process_time()
            sync(many, n, args.projects)
            parts.append(time.process_time() - began)
        tenth = max(1, args.syncs // 10)
        first, last = (1000 * statistics.mean(p) for p in (parts[:tenth], parts[-tenth:]))
        said = f"CPU of a sync: {first:.0f} ms in the beginning, {last:.0f} ms in the end"
        print(f"{args.syncs:,} syncs of {args.projects:,} projects; {said}")
        with Writer(one) as writer:
            for n in range(args.syncs):
                put(writer, n, args.projects)
            writer.compact()
        print("| | many small syncs | one sync | ratio |\n| --- | --- | --- | --- |")
        for kind in (sizes, lambda root: ask(root, args.repeat)):
            left, right = kind(many), kind(one)
            for name in left:
                print(f"| {name} | {left[name]:,.1f} | {right[name]:,.1f} | {left[name] / right[name]:.2f} |")


if __name__ == "__main__":
    main()
