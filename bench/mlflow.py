"""How fast the points of an MLflow store are read, beside `MlflowClient.get_metric_history` key by key.

    python bench/mlflow.py [--steps 2000] [--keys 10] [--wide 300] [--runs 40] [--workers 4] [--repeat 3]

Starts an `mlflow server` (4 workers, as by default) on a SQLite file, logs a run with some keys of many points, one
with many keys of two, and many runs with three keys of a hundred, and reads them:

    client  MlflowClient.get_metric_history for each key, as the usual scripts do
    rest    the server, as `mirror sync mlflow:http://..` asks it: rows as JSON texts, ordered by time
    file    the SQLite file, as `mirror sync mlflow:sqlite:///..` reads it: the same rows

Prints points a second (best of `--repeat`, wall time) and the ratio to `client`. All three must agree on the count.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.remove(str(Path(__file__).parent))  # where `mlflow` is this script

import requests
from mlflow import MlflowClient
from mlflow.entities import Metric

from mirror.sources.mlflow.points import Points
from mirror.sources.mlflow.road import Road, open_road
from mirror.sources.mlflow.rows import rows
from mirror.sources.mlflow.source import TOGETHER


def by_client(client: MlflowClient, run_ids: list[str]) -> int:
    return sum(
        len(client.get_metric_history(run_id, key)) for run_id in run_ids for key in client.get_run(run_id).data.metrics
    )


def by_road(road: Road, experiment: str, run_ids: list[str]) -> int:
    """As `mirror sync` asks, 16 runs at a time."""
    total = 0
    for start in range(0, len(run_ids), TOGETHER):
        runs = road.documents(experiment, run_ids[start : start + TOGETHER])
        with road.points(list(runs.values())) as points:
            for found in points.values():
                assert isinstance(found, Points)
                total += sum(map(len, rows(found)))
    return total


def log(client: MlflowClient, experiment: str, keys: int, steps: int) -> str:
    run_id: str = client.create_run(experiment).info.run_id
    points = [Metric(f"k{k}", k + i / 7, 1_700_000_000_000 + i, i) for i in range(steps) for k in range(keys)]
    for start in range(0, len(points), 1000):
        client.log_batch(run_id, metrics=points[start : start + 1000], synchronous=True)
    return run_id


def best(repeat: int, read: Callable[[], int], expected: int) -> float:
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        assert read() == expected
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--keys", type=int, default=10)
    parser.add_argument("--wide", type=int, default=300)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
        s.close()
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", str(options.workers)]
        command += ["--backend-store-uri", f"sqlite:///{folder}/store.db", "--artifacts-destination", f"{folder}/a"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen(command, cwd=folder, start_new_session=True, **quiet)
        try:
            compare(f"http://127.0.0.1:{port}", Path(folder, "store.db"), options)
        finally:
            os.killpg(server.pid, 15)
            server.wait(30)


def compare(url: str, file: Path, options: argparse.Namespace) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if requests.get(f"{url}/health", timeout=5).ok:
                break
        except requests.ConnectionError:
            time.sleep(0.2)
    client = MlflowClient(url)
    experiment = client.create_experiment("bench")
    roads = {"rest": open_road(f"mlflow:{url}", {}), "file": open_road(f"mlflow:sqlite:///{file}", {})}
    for count, keys, steps in (1, options.keys, options.steps), (1, options.wide, 2), (options.runs, 3, 100):
        run_ids = [log(client, experiment, keys, steps) for _ in range(count)]
        points = count * keys * steps
        base = best(options.repeat, lambda run_ids=run_ids: by_client(client, run_ids), points)
        print(f"{count} runs x {keys} keys x {steps} points: client {points / base:,.0f} points/s", end="")
        for name, road in roads.items():
            taken = best(options.repeat, lambda road=road, run_ids=run_ids: by_road(road, experiment, run_ids), points)
            print(f", {name} {points / taken:,.0f} ({base / taken:.1f}x)", end="")
        print(flush=True)


if __name__ == "__main__":
    main()
