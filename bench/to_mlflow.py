"""How fast mirrored runs get into MLflow, a server or a database file, beside the usual loop over MLflow's own client.

    python bench/to_mlflow.py [--runs 8] [--rows 1000] [--keys 10] [--long 10000] [--only file] [--no-loop]

Each way into a `mlflow server` (SQLite, its usual four workers) of its own that nobody else uses:

    log_batch loop   MlflowClient.log_batch, 1,000 metrics at a time, one run after the other; nothing is checked
                     afterwards
    mirror push      the whole command, start to exit, which reads all points back and compares them

and into the SQLite file of a store of its own, without a server: the loop through MlflowClient("sqlite:///..."), which
is how wandb-to-mlflow does it, and `mirror push --to mlflow:sqlite:///...`, whose time has the seconds in it that
importing MLflow takes; the loop's has not.

Prints points and rows a second by the clock, and how many of the machine's cores the server, or the one process, kept
busy meanwhile. Every point is counted in the databases.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import shutil
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

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from tracking import tracking

import mirror
from mirror.query.rows import rows as read_rows
from mirror.records import Run, RunKey
from mirror.store import Reader

os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
logging.getLogger("mlflow").setLevel(logging.WARNING)


def made(root: Path, runs: int, rows: int, keys: int) -> None:
    def row(r: int, i: int) -> str:
        values = {f"metric/{k}": (i + 1) / (k + r + 3) for k in range(keys)}
        return json.dumps({"_step": i, "_timestamp": 1.7e9 + i, "_runtime": i} | values)

    with mirror.open(root, write=True) as m:
        for r in range(runs):
            key = RunKey("bench", str(r), "bench", "runs", f"run{r}")
            m.put_runs([Run(key, state="finished", config=json.dumps({"lr": {"value": r / 7}}))])
            m.put_history(key, (row(r, i) for i in range(rows)))


def loop(root: Path, uri: str) -> None:
    client = MlflowClient(uri)
    experiment = client.create_experiment("bench/runs")
    with Reader(root) as reader:
        for (rid,) in reader.connect().execute("select rid from runs order by rid").fetchall():
            run_id = client.create_run(experiment).info.run_id
            batch: list[Metric] = []
            for row in read_rows(reader, rid):
                step, at, _ = row.pop("_step"), round(row.pop("_timestamp") * 1000), row.pop("_runtime")
                batch += [Metric(key, value, at, step) for key, value in row.items()]
                while len(batch) >= 1000:
                    client.log_batch(run_id, metrics=batch[:1000], synchronous=True)
                    del batch[:1000]
            client.log_batch(run_id, metrics=batch, params=[Param("lr", "0")], synchronous=True)
            client.set_terminated(run_id)


def push(root: Path, uri: str) -> None:
    command = [sys.executable, "-m", "mirror", "push", "--to", f"mlflow:{uri}", "--mirror", str(root), "-q"]
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


def own_cpu() -> float:
    """Seconds that this process has used, and those it started."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


Way = Callable[[Path, str], None]


def into_server(way: Way, root: Path, points: int) -> tuple[float, float]:
    """Seconds by the clock, and of the server's CPU."""
    with tempfile.TemporaryDirectory() as folder, tracking(Path(folder)) as server:
        server.client.search_experiments()
        used, began = cpu(server.pid), time.perf_counter()
        way(root, server.url)
        seconds, used = time.perf_counter() - began, cpu(server.pid) - used
        check(server.database, points)
    return seconds, used


def into_file(way: Way, root: Path, points: int) -> tuple[float, float]:
    """Seconds by the clock, and of the writer's CPU."""
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder, "store.db")
        os.chdir(_EMPTY.parent)  # MLflow keeps artifacts below the folder it makes a store in
        if not _EMPTY.exists():
            MlflowClient(f"sqlite:///{_EMPTY}").search_experiments()
        shutil.copy(_EMPTY, database)
        used, began = own_cpu(), time.perf_counter()
        way(root, f"sqlite:///{database}")
        seconds, used = time.perf_counter() - began, own_cpu() - used
        check(database, points)
        os.chdir("/")
    return seconds, used


def check(database: Path, points: int) -> None:
    with closing(sqlite3.connect(database)) as connection:
        ((there,),) = connection.execute("select count(*) from metrics").fetchall()
    assert there == points, (there, points)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("runs", 8), ("rows", 1000), ("keys", 10), ("long", 10_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", choices=["server", "file"])
    parser.add_argument("--no-loop", action="store_true")
    options: Any = parser.parse_args()
    print("| runs x rows x keys | into | way | s | rows/s | points/s | CPU s | cores busy |")
    print("|---|---|---|---|---|---|---|---|")
    for runs, rows in ((options.runs, options.rows), (1, options.long)):
        if not rows:
            continue
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder, "mirror")
            made(root, runs, rows, options.keys)
            for place, into in (("server", into_server), ("file", into_file)):
                if options.only not in (None, place):
                    continue
                took: list[float] = []
                for name, way in (("log_batch loop", loop), ("mirror push", push))[options.no_loop :]:
                    seconds, used = into(way, root, runs * rows * options.keys)
                    took.append(seconds)
                    print(
                        f"| {runs} x {rows:,} x {options.keys} | {place} | {name} | {seconds:.1f} | "
                        f"{runs * rows / seconds:,.0f} | {runs * rows * options.keys / seconds:,.0f} | {used:.1f} | "
                        f"{used / seconds:.2f} |",
                        flush=True,
                    )
                print(f"\n{took[0] / took[-1]:.2f}x by the clock\n" if len(took) > 1 else "", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made_once:
        _EMPTY = Path(made_once, "empty.db")
        main()
