"""How fast mirrored runs get into a W&B server, beside `wandb sync` of the same runs into the same kind of server.

    python bench/push.py [--shapes 20x5000 20x30000 1x200000] [--keys 10] [--long 1000000]

For each shape (runs x rows) the real SDK logs the runs offline, and `mirror sync` reads the folders into a mirror.
Then, each into a `mirror serve` of its own that nobody else uses:

    wandb sync     the SDK's command, all folders at once
    mirror push    the whole command, start to exit, with its own check that everything is there

Prints rows a second by the clock, microseconds of the client's CPU and of the server's a row, and the ratio; and for
one run of --long rows (0: leave it out) the same with the peak memory of the command. Every row is counted at both
servers.
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
    served: float = 0.0
    """Seconds of the server's CPU until then."""


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
        f"{took.served / rows * 1e6:.1f} | {took.peak / 1024:,.0f} |",
        flush=True,
    )


def cpu_of(server: Server) -> float:
    """Seconds, of all its threads."""
    assert server.process is not None
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(command: list[str], env: dict[str, str], place: Path, server: Server, rows: int) -> Took:
    before = cpu_of(server)
    took = timed(command, env, place)
    took.served = cpu_of(server) - before
    assert rows_at(server) == rows, rows_at(server)
    return took


def push(place: Path, server: Server, root: Path, rows: int) -> Took:
    env = {"MIRROR_DST_API_KEY": server.key, "NETRC": "/dev/null"}
    command = [*MIRROR, "push", "--to", server.url, "--mirror", str(root), "-q"]
    return measured(command, env, place, server, rows)


def compare(place: Path, runs: int, rows: int, keys: int) -> None:
    """One shape: both ways, and how often the one is as fast as the other."""
    for name in ("sdk", "ours"):
        (place / name).mkdir(parents=True)
    shape, count = f"{runs} x {rows:,} rows", runs * rows
    with serving(place / "sdk" / "server") as server:
        env = server.env | {"WANDB_DIR": str(place)}
        timed([sys.executable, "-c", LOG, str(runs), str(rows), str(keys)], env, place)
        folders = sorted(str(path) for path in (place / "wandb").glob("offline-run-*"))
        by_sdk = measured([sys.executable, "-m", "wandb", "sync", *folders], env, place, server, count)
        show(f"wandb sync, {shape}", by_sdk, count)
    timed([*MIRROR, "sync", f"file:{place / 'wandb'}", "--mirror", str(place / "mirror")], {}, place)
    with serving(place / "ours" / "server") as server:
        ours = push(place, server, place / "mirror", count)
        show(f"mirror push, {shape}", ours, count)
    print(
        f"| {by_sdk.seconds / ours.seconds:.1f}x by the clock, {by_sdk.cpu / ours.cpu:.1f}x by the CPU | | | | | |",
        flush=True,
    )


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
    parser.add_argument("--shapes", nargs="*", default=["20x5000", "20x30000", "1x200000"])
    for name, default in (("keys", 10), ("long", 1_000_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options: Any = parser.parse_args()
    print("| way | s | rows/s | µs CPU/row | server's | peak MiB |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for shape in options.shapes:
            runs, rows = map(int, shape.split("x"))
            compare(place / shape, runs, rows, options.keys)
        if options.long:
            long_run(place / "long", options.long, options.keys)
            (place / "c").mkdir()
            with serving(place / "c" / "server") as server:
                took = push(place, server, place / "long", options.long)
                show(f"mirror push, 1 x {options.long:,} rows", took, options.long)


if __name__ == "__main__":
    main()
