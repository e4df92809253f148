"""How fast mirrored runs get into an MLflow server, beside the usual loop over MLflow's own client.

    python bench/to_mlflow.py [--runs 8] [--rows 1000] [--keys 10] [--long 10000]

Each way into a `mlflow server` (SQLite, its usual four workers) of its own that nobody else uses:

    log_batch loop   MlflowClient.log_batch, 1,000 metrics at a time, one run after the other, as wandb-to-mlflow does;
                     nothing is checked afterwards
    mirror push      the whole command, start to exit, which reads all points back and compares them

Prints points and rows a second by the clock, and how many of the machine's cores the server kept busy meanwhile: when
it is about all there are, the server is what a push waits for. Every point is counted in the servers' databases.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.remove(str(Path(__file__).parent))  # where `mlflow` is another script
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from mlflow.entities import Metric, Param
from tracking import Tracking, tracking

import mirror
from mirror.query.rows import rows as read_rows
from mirror.records import Run, RunKey
from mirror.store import Reader

os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"


def made(root: Path, runs: int, rows: int, keys: int) -> None:
    def row(r: int, i: int) -> str:
        values = {f"metric/{k}": (i + 1) / (k + r + 3) for k in range(keys)}
        return json.dumps({"_step": i, "_timestamp": 1.7e9 + i, "_runtime": i} | values)

    with mirror.open(root, write=True) as m:
        for r in range(runs):
            key = RunKey("bench", str(r), "bench", "runs", f"run{r}")
            m.put_runs([Run(key, state="finished", config=json.dumps({"lr": {"value": r / 7}}))])
            m.put_history(key, (row(r, i) for i in range(rows)))


def loop(root: Path, server: Tracking) -> None:
    experiment = server.client.create_experiment("bench/runs")
    with Reader(root) as reader:
        for (rid,) in reader.connect().execute("select rid from runs order by rid").fetchall():
            run_id = server.client.create_run(experiment).info.run_id
            batch: list[Metric] = []
            for row in read_rows(reader, rid):
                step, at, _ = row.pop("_step"), round(row.pop("_timestamp") * 1000), row.pop("_runtime")
                batch += [Metric(key, value, at, step) for key, value in row.items()]
                while len(batch) >= 1000:
                    server.client.log_batch(run_id, metrics=batch[:1000], synchronous=True)
                    del batch[:1000]
            server.client.log_batch(run_id, metrics=batch, params=[Param("lr", "0")], synchronous=True)
            server.client.set_terminated(run_id)


def push(root: Path, server: Tracking) -> None:
    command = [sys.executable, "-m", "mirror", "push", "--to", f"mlflow:{server.url}", "--mirror", str(root), "-q"]
    subprocess.run(command, check=True)


def cpu(group: int) -> float:
    """Seconds that a process group has used."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12]) if int(fields[2]) == group else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def timed(way: Callable[[Path, Tracking], None], root: Path, points: int) -> tuple[float, float]:
    """Seconds by the clock, and of the server's CPU."""
    with tempfile.TemporaryDirectory() as folder, tracking(Path(folder)) as server:
        server.client.search_experiments()
        used, began = cpu(server.pid), time.perf_counter()
        way(root, server)
        seconds, used = time.perf_counter() - began, cpu(server.pid) - used
        with closing(sqlite3.connect(server.database)) as database:
            ((there,),) = database.execute("select count(*) from metrics").fetchall()
        assert there == points, (there, points)
    return seconds, used


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("runs", 8), ("rows", 1000), ("keys", 10), ("long", 10_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options: Any = parser.parse_args()
    print("| runs x rows x keys | way | s | rows/s | points/s | server: CPU s | cores busy |")
    print("|---|---|---|---|---|---|---|")
    for runs, rows in ((options.runs, options.rows), (1, options.long)):
        if not rows:
            continue
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder, "mirror")
            made(root, runs, rows, options.keys)
            took: list[float] = []
            for name, way in (("log_batch loop", loop), ("mirror push", push)):
                seconds, used = timed(way, root, runs * rows * options.keys)
                took.append(seconds)
                print(
                    f"| {runs} x {rows:,} x {options.keys} | {name} | {seconds:.1f} | {runs * rows / seconds:,.0f} | "
                    f"{runs * rows * options.keys / seconds:,.0f} | {used:.1f} | {used / seconds:.2f} |",
                    flush=True,
                )
            print(f"\n{took[0] / took[1]:.2f}x by the clock\n", flush=True)


if __name__ == "__main__":
    main()
