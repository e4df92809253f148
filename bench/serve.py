"""What `mirror serve` takes in: rows of many runs at once, acknowledged when they are on the disk.

    python bench/serve.py [--runs 50] [--rows 4000] [--readers 20] [--sdk 50] [--long 1000000]

The floor is a bare starlette handler in a server process like ours that appends each body to a file of its run and
calls fsync: no key, no JSON, no line numbers. Clients, floor and server share the machine; compare ratios of one
invocation. Prints tables of

  one run, and all runs at once, with and without readers, and beside 200 clients that send a byte a second
  bodies of 10 MiB
  the memory of the server while one run logs a million rows
  real SDK processes that log at the same time, through the real `wandb`
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from loading import PROJECT, Measured, Wire, background, dawdlers, lines, log, posts
from serving import Server, serving

FLOOR = """
import os, sys, uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse
from starlette.routing import Route

def keep(name, body):
    fd = os.open(os.path.join(sys.argv[1], name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(fd, body)
        os.fsync(fd)
    finally:
        os.close(fd)

async def take(request):
    await run_in_threadpool(keep, request.path_params["run"], await request.body())
    return PlainTextResponse("{}")

async def ready(request):
    return PlainTextResponse("ok")

routes = [Route("/files/{e}/{p}/{run}/file_stream", take, methods=["POST"]), Route("/ready", ready)]
uvicorn.run(Starlette(routes=routes), port=int(sys.argv[2]), log_level="warning", access_log=False)
"""

SDK = """
import sys, wandb
with wandb.init(entity="local", project="sdk", id=sys.argv[1], settings=wandb.Settings(x_disable_stats=True)) as run:
    for i in range(int(sys.argv[2])):
        run.log({"loss": 1 / (i + 1), "acc": i / 7, "epoch": i // 10})
"""

RUNS = """query($p: String!) { project(name: $p, entityName: "local") { runs(first: 50) { edges { node
  { name state historyLineCount summaryMetrics } } } } }"""
ROWS = """query($p: String!, $r: String!) { project(name: $p, entityName: "local") { run(name: $r)
  { history(minStep: 0, maxStep: 1000, samples: 1000) } } }"""


@contextmanager
def floor(place: Path) -> Iterator[Server]:
    """The bare handler, in the shape of a `Server`."""
    found = Server(place / "floor")
    found.root.mkdir()
    process = subprocess.Popen([sys.executable, "-c", FLOOR, str(found.root), str(found.port)])
    try:
        for _ in range(200):
            try:
                requests.get(found.url + "/ready", timeout=1)
                break
            except requests.ConnectionError:
                time.sleep(0.05)
        found.process = process
        yield found
    finally:
        process.terminate()
        process.wait()


@dataclass
class Cost:
    """CPU seconds of a server process, and its memory in MB at the end."""

    process: psutil.Process
    cpu: float = 0.0
    memory: float = 0.0

    def __enter__(self) -> Cost:
        self._before = self.process.cpu_times()
        return self

    def __exit__(self, *_: object) -> None:
        after = self.process.cpu_times()
        self.cpu = after.user + after.system - self._before.user - self._before.system
        self.memory = self.process.memory_info().rss / 1e6


def cost(server: Server) -> Cost:
    assert server.process
    return Cost(psutil.Process(server.process.pid))


def header(*names: str) -> None:
    line(*names)
    print("|" + " --- |" * len(names))


def line(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def taken(server: Server, name: str, bodies: dict[str, list[bytes]], rows: int) -> tuple[Measured, Cost]:
    with cost(server) as spent:
        found = log(server, bodies)
    total = rows * len(bodies)
    waits = f"{found.wait(0.5):.0f} / {found.wait(0.99):.0f}"
    line(name, f"{total / found.wall:,.0f}", waits, f"{spent.cpu / total * 1e6:.1f}", f"{spent.memory:.0f}")
    return found, spent


def many(server: Server, bare: Server, args: argparse.Namespace) -> None:
    content = lines(args.rows, 10)
    bodies = posts(content, args.batch)
    print(f"\n{args.runs} runs x {args.rows:,} rows x 10 keys, {args.batch} rows a post")
    header("", "rows/s", "ms a post (median / 99 %)", "server CPU us/row", "server MB")
    rate: dict[str, float] = {}

    def phase(name: str, label: str, where: Server, runs: int) -> None:
        names = [f"{label}{n}" for n in range(runs)]
        if where is server:
            for run in names:
                server.upsert(PROJECT, run)
        found, _ = taken(where, name, dict.fromkeys(names, bodies), args.rows)
        rate[label] = runs * args.rows / found.wall
        if where is server:
            check(server, names, args.rows)

    phase("floor, one run", "floorone", bare, 1)
    phase("one run", "one", server, 1)
    phase("floor, all runs", "floorall", bare, args.runs)
    phase("all runs", "all", server, args.runs)
    with background(lambda: reader(server), args.readers) as waits:
        phase(f"all runs beside {args.readers} readers", "read", server, args.runs)
    print(f"(the readers were answered {len(waits) / (args.runs * args.rows / rate['read']):.0f} times a second)")
    server.upsert(PROJECT, "slow")
    with dawdlers(server, 200, "slow"):
        phase("all runs beside 200 clients that send a byte a second", "slowly", server, args.runs)
    print(
        f"\none run {rate['one'] / rate['floorone']:.2f} of the floor; all runs {rate['all'] / rate['floorall']:.2f}, "
        f"with readers {rate['read'] / rate['floorall']:.2f}, with slow clients {rate['slowly'] / rate['floorall']:.2f}"
    )


def reader(server: Server) -> None:
    server.graphql(RUNS, p=PROJECT)
    server.graphql(ROWS, p=PROJECT, r="one0")


def check(server: Server, names: list[str], rows: int) -> None:
    """Everything that was acknowledged is there."""
    query = 'query($r: String!) { project(name: "load", entityName: "local") { run(name: $r) { historyLineCount } } }'
    for name in names:
        held = server.graphql(query, r=name)["project"]["run"]["historyLineCount"]
        assert held == rows, (name, held)
        assert server.stream(PROJECT, name, complete=True, exitcode=0).ok


def large(server: Server, bare: Server) -> None:
    content = [json.dumps({"_step": i, "text": "x" * 100_000}) for i in range(104 * 8)]
    bodies = posts(content, 104)
    print(f"\n8 bodies of {len(bodies[0]) / (1 << 20):.1f} MiB, one after the other")
    header("", "MiB/s", "server CPU ms a body", "server MB")
    server.upsert(PROJECT, "large")
    rate = []
    for name, where in (("floor", bare), ("server", server)):
        with cost(where) as spent:
            found = log(where, {"large": bodies})
        rate.append(sum(map(len, bodies)) / (1 << 20) / found.wall)
        line(name, f"{rate[-1]:.0f}", f"{spent.cpu / len(bodies) * 1000:.0f}", f"{spent.memory:.0f}")
    print(f"\n{rate[1] / rate[0]:.2f} of the floor")


def long(place: Path, rows: int, keys: int) -> None:
    print(f"\none run of {rows:,} rows x {keys} keys, logged, ended, exported")
    header("after rows", "server MB", "peak MB so far")
    with serving(place / f"long{keys}", "--history-exports", "now") as server:
        assert server.process
        process, peak = psutil.Process(server.process.pid), 0.0
        server.upsert(PROJECT, "long")
        wire, batch = Wire(server), max(1, 20_000 // keys)
        tenth = rows // 10

        def note(what: str) -> None:
            line(what, f"{process.memory_info().rss / 1e6:.0f}", f"{peak:.0f}")

        for start in range(0, rows, batch):
            part = lines(min(batch, rows - start), keys, start, start)
            body = json.dumps({"files": {"wandb-history.jsonl": {"offset": start, "content": part}}}).encode()
            status, answer = wire.post(f"/files/local/{PROJECT}/long/file_stream", body)
            assert status == 200, answer
            peak = max(peak, process.memory_info().rss / 1e6)
            if start // tenth != (start + batch) // tenth:
                note(f"{start + batch:,}")
        server.stream(PROJECT, "long", complete=True, exitcode=0)
        query = (
            'query($p: String!) { project(name: $p, entityName: "local") { run(name: "long") '
            '{ parquetHistory(liveKeys: ["_step"]) { parquetUrls } } } }'
        )
        links: list[str] = []
        while not links:
            links = server.graphql(query, p=PROJECT)["project"]["run"]["parquetHistory"]["parquetUrls"]
            peak = max(peak, process.memory_info().rss / 1e6)
        note(f"exported to {len(links)} files")


def sdk(server: Server, processes: int, rows: int) -> None:
    print(f"\n{processes} processes of the real SDK, {rows} rows each")
    env: dict[str, Any] = os.environ | server.env
    with cost(server) as spent:
        began = time.perf_counter()
        running = [
            subprocess.Popen([sys.executable, "-c", SDK, f"sdk{n}", str(rows)], env=env, cwd=server.env["WANDB_DIR"])
            for n in range(processes)
        ]
        codes = [process.wait(600) for process in running]
        wall = time.perf_counter() - began
    assert not any(codes), codes
    found = server.graphql(RUNS, p="sdk")["project"]["runs"]["edges"]
    held = {edge["node"]["name"]: edge["node"]["historyLineCount"] for edge in found}
    assert held == {f"sdk{n}": rows for n in range(processes)}, held
    print(f"all rows there after {wall:.1f} s; the server took {spent.cpu:.1f} s of CPU and {spent.memory:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--rows", type=int, default=4000, help="rows of each run")
    parser.add_argument("--batch", type=int, default=200, help="rows a post")
    parser.add_argument("--readers", type=int, default=20)
    parser.add_argument("--sdk", type=int, default=50, help="real SDK processes; 0 leaves them out")
    parser.add_argument("--sdk-rows", type=int, default=300)
    parser.add_argument("--long", type=int, default=1_000_000, help="rows of the long run; 0 leaves it out")
    args = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="bench-serve-"))
    try:
        with serving(place / "server") as server, floor(place) as bare:
            many(server, bare, args)
            large(server, bare)
            if args.sdk:
                sdk(server, args.sdk, args.sdk_rows)
        if args.long:
            long(place, args.long, 10)
            long(place, args.long // 1000, 10_000)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
