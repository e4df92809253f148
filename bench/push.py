"""How fast mirrored runs get into a W&B server, beside `wandb sync` of the same runs into the same kind of server.

    python bench/push.py [--runs 20] [--rows 5000] [--keys 10] [--long 1000000]

The real SDK logs the runs offline; `mirror sync` reads the folders into a mirror. Then, each into a `mirror serve` of
its own that nobody else uses:

    wandb sync     the SDK's command, all folders at once
    mirror push    the whole command, start to exit, with its own check that everything is there

Prints rows a second by the clock, microseconds of the client's CPU a row, and the ratio; and for one run of --long
rows (0: leave it out) the same with the peak memory of the command. Every row is counted at both servers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from serving import Server, serving

import mirror
from mirror.records import Project, Run, RunKey

MIRROR = [sys.executable, "-m", "mirror"]
ENTITY, PROJECT = "local", "push"

LOG = """
import sys, wandb
runs, rows, keys = map(int, sys.argv[1:])
for r in range(runs):
    run = wandb.init(entity="local", project="push", id=f"run{r}", mode="offline", config={"lr": r / 7})
    for i in range(rows):
        run.log({f"metric/{k}": (i + 1) / (k + r + 3) for k in range(keys)})
    run.finish()
"""


@dataclass
class Took:
    seconds: float
    cpu: float
    peak: int
    """KiB"""


def timed(command: list[str], env: dict[str, str], cwd: Path) -> Took:
    """Run a command with all it starts; its own CPU and that of its children."""
    began = time.perf_counter()
    with (cwd / "output.log").open("ab") as log:
        process = subprocess.Popen(command, env=os.environ | env, cwd=cwd, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed: {(cwd / 'output.log').read_text()[-2000:]}")
    return Took(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)


def rows_at(server: Server) -> int:
    query = "query R($p: String!) { project(name: $p) { runs(first: 1000) { edges { node { historyLineCount } } } } }"
    edges = server.graphql(query, p=PROJECT)["project"]["runs"]["edges"]
    return sum(edge["node"]["historyLineCount"] for edge in edges)


def show(what: str, took: Took, rows: int) -> None:
    print(
        f"| {what} | {took.seconds:.2f} | {rows / took.seconds:,.0f} | {took.cpu / rows * 1e6:.1f} | "
        f"{took.peak / 1024:,.0f} |"
    )


def push(place: Path, server: Server, root: Path) -> Took:
    env = {"MIRROR_DST_API_KEY": server.key, "NETRC": "/dev/null"}
    return timed([*MIRROR, "push", "--to", server.url, "--mirror", str(root), "-q"], env, place)


def long_run(root: Path, rows: int, keys: int) -> None:
    """A mirror with one long run, written from Python."""
    key = RunKey("bench", "1", ENTITY, PROJECT, "long")

    def row(i: int) -> str:
        values = {f"metric/{k}": (i + 1) / (k + 3) for k in range(keys)}
        return json.dumps({"_step": i, "_timestamp": 1.7e9 + i, "_runtime": i} | values)

    with mirror.open(root, write=True) as made:
        made.put_projects([Project("bench", ENTITY, PROJECT)])
        made.put_runs([Run(key, state="finished")])
        made.put_history(key, map(row, range(rows)))


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("runs", 20), ("rows", 5000), ("keys", 10), ("long", 1_000_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options: Any = parser.parse_args()
    rows = options.runs * options.rows
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in ("a", "b", "c"):
            (place / name).mkdir()
        print("| way | s | rows/s | µs CPU/row | peak MiB |\n|---|---|---|---|---|")
        with serving(place / "a" / "server") as server:
            env = server.env | {"WANDB_DIR": str(place)}
            numbers = [str(options.runs), str(options.rows), str(options.keys)]
            timed([sys.executable, "-c", LOG, *numbers], env, place)
            folders = sorted(str(path) for path in (place / "wandb").glob("offline-run-*"))
            by_sdk = timed([sys.executable, "-m", "wandb", "sync", *folders], env, place)
            assert rows_at(server) == rows, rows_at(server)
            show(f"wandb sync, {options.runs} x {options.rows:,} rows", by_sdk, rows)
        timed([*MIRROR, "sync", f"file:{place / 'wandb'}", "--mirror", str(place / "mirror")], {}, place)
        with serving(place / "b" / "server") as server:
            ours = push(place, server, place / "mirror")
            assert rows_at(server) == rows, rows_at(server)
            show(f"mirror push, {options.runs} x {options.rows:,} rows", ours, rows)
        print(f"\n{by_sdk.seconds / ours.seconds:.1f}x by the clock, {by_sdk.cpu / ours.cpu:.1f}x by the CPU\n")
        if options.long:
            long_run(place / "long", options.long, options.keys)
            with serving(place / "c" / "server") as server:
                took = push(place, server, place / "long")
                assert rows_at(server) == options.long
                show(f"mirror push, 1 x {options.long:,} rows", took, options.long)


if __name__ == "__main__":
    main()
