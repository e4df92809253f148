"""How fast MLflow runs get into a W&B server: `mirror import mlflow`, the whole command with its own check.

    python bench/import_mlflow.py [--runs 40] [--long 10000] [--wide 1000]

Logs, into the SQLite file of an MLflow store, --runs runs of 3 keys x 100 points, one of 10 keys x --long points, and
one of --wide keys x 2 points; imports each of the three experiments into a `mirror serve` of its own, and counts the
rows that arrived. The last importer in W&B's SDK (0.19.11) imports nothing as shipped; with the one setting that breaks
it mended it was seen to take 11.4 s (351 rows/s), 10.2 s (980 rows/s) and 14.8 s for the same runs on such a machine,
losing the points that share a step and every time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.remove(str(Path(__file__).parent))  # where `mlflow` is another script
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from mlflow import MlflowClient
from mlflow.entities import Metric
from serving import Server, serving

SEEN = {"many": 11.4, "long": 10.2, "wide": 14.8}
"""Seconds that the SDK's importer was seen to take for 40 x 3 x 100, 1 x 10 x 10,000 and 1 x 1,000 x 2 points."""


def log(client: MlflowClient, experiment: str, keys: int, steps: int) -> None:
    run_id = client.create_run(experiment).info.run_id
    points = [Metric(f"k{k}", k + i / 7, 1_700_000_000_000 + i, i) for i in range(steps) for k in range(keys)]
    for start in range(0, len(points), 1000):
        client.log_batch(run_id, metrics=points[start : start + 1000], synchronous=True)
    client.set_terminated(run_id)


def rows_at(server: Server, project: str) -> int:
    query = "query R($p: String!) { project(name: $p) { runs(first: 1000) { edges { node { historyLineCount } } } } }"
    edges = server.graphql(query, p=project)["project"]["runs"]["edges"]
    return sum(edge["node"]["historyLineCount"] for edge in edges)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("runs", 40), ("long", 10_000), ("wide", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options: Any = parser.parse_args()
    shapes = {"many": (options.runs, 3, 100), "long": (1, 10, options.long), "wide": (1, options.wide, 2)}
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/store.db"
        client = MlflowClient(store)
        print("| runs x keys x points | s | rows/s | points/s | seen of the SDK's importer, s |\n|---|---|---|---|---|")
        for name, (runs, keys, steps) in shapes.items():
            experiment = client.create_experiment(name)
            for _ in range(runs):
                log(client, experiment, keys, steps)
            place = Path(folder, name)
            place.mkdir()
            with serving(place / "server") as server:
                command = [sys.executable, "-m", "mirror", "import", "mlflow", store, "--experiment", name, "-q"]
                command += ["--dst-base-url", server.url, "--mirror", str(place / "mirror")]
                began = time.perf_counter()
                subprocess.run(command, env=os.environ | {"MIRROR_DST_API_KEY": server.key}, check=True)
                took = time.perf_counter() - began
                rows = rows_at(server, name)
                assert rows == runs * steps, rows
            print(
                f"| {runs} x {keys} x {steps:,} | {took:.1f} | {rows / took:,.0f} | {rows * keys / took:,.0f} | "
                f"{SEEN[name]} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
