"""First sync over GraphQL rows: `mirror sync` beside what people do today, on the same server with the same data.

    python bench/sync.py [--runs 20] [--rows 5000] [--keys 10] [--repeat 3]

Prints a table of four ways to read every row of every run:

  sdk       list(run.scan_history()) per run, the usual script, through the real wandb SDK
  loop      bare requests for pages of the best size, one after the other, that throws the pages away
  sync      `mirror sync` into a fresh mirror
  replay    `mirror sync` again, the answers now coming recorded from memory: no server hides the client's cost

and the same for many short runs with 150 ms of latency per request. Every figure is of a whole process, its
start included; CPU is that of the process and its children (the SDK's sidecar too). The server's own CPU is
not the client's, but on few cores both share them: compare ratios of one invocation, not absolute times.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from liar import Answer, Request, liar
from serving import Server, serving
from syncing import MIRROR, proxied

ENTITY = "local"

SDK = """
import sys, wandb
n = 0
for i, run in enumerate(wandb.Api(timeout=120).runs(sys.argv[1])):
    if i == int(sys.argv[2]):
        break
    n += len(list(run.scan_history()))
print(n)
"""

LOOP = """
import os, sys, requests
session = requests.Session()
session.auth = ("api", os.environ["WANDB_API_KEY"])
url, page, n = os.environ["WANDB_BASE_URL"] + "/graphql", int(sys.argv[2]), 0
def ask(query, **variables):
    return session.post(url, json={"query": query, "variables": variables}).json()["data"]["project"]
entity, project = sys.argv[1].split("/")
query = '''query R($e: String!, $p: String!, $a: String) { project(name: $p, entityName: $e) {
  runs(first: 1000, after: $a) { edges { node { name historyKeys } } pageInfo { endCursor hasNextPage } } } }'''
names, after = [], None
while True:
    found = ask(query, e=entity, p=project, a=after)["runs"]
    names += [(e["node"]["name"], e["node"]["historyKeys"]["lastStep"]) for e in found["edges"]]
    after = found["pageInfo"]["endCursor"]
    if not found["pageInfo"]["hasNextPage"]:
        break
query = '''query H($e: String!, $p: String!, $r: String!, $lo: Int64!, $hi: Int64!, $n: Int!) {
  project(name: $p, entityName: $e) { run(name: $r) { history(minStep: $lo, maxStep: $hi, samples: $n) } } }'''
for name, last in names:
    for low in range(0, last + 1, page):
        n += len(ask(query, e=entity, p=project, r=name, lo=low, hi=low + page, n=page)["run"]["history"])
print(n)
"""


@dataclass
class Measured:
    """Seconds of wall clock and CPU of a process tree, its peak memory in MB, and what it printed."""

    wall: float
    cpu: float
    rss: float
    out: str


def measure(command: list[str], env: dict[str, str]) -> Measured:
    began = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    cpu: dict[int, float] = {}
    peak = [0.0]

    def watch() -> None:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            memory = 0
            try:
                for p in [root, *root.children(recursive=True)]:
                    times = p.cpu_times()
                    cpu[p.pid] = times.user + times.system
                    memory += p.memory_info().rss
            except psutil.Error:
                pass
            peak[0] = max(peak[0], memory / 1e6)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate()
    wall = time.perf_counter() - began
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{command[:3]} ended with {process.returncode}:\n{out}\n{err}")
    return Measured(wall, sum(cpu.values()), peak[0], out)


def best(repeat: int, ways: dict[str, Callable[[], Measured]]) -> dict[str, Measured]:
    """The quickest of `repeat` rounds of every way; a round tries all ways in turn, so that a machine that is
    busy for a while is busy for all of them."""
    rounds = [{name: run() for name, run in ways.items()} for _ in range(repeat)]
    return {name: min((found[name] for found in rounds), key=lambda m: m.wall) for name in ways}


def fill(server: Server, project: str, runs: int, rows: int, keys: int) -> None:
    """Runs as training loops log them: step, time and keys - 3 floats."""
    rng = random.Random(0)
    names = [f"train/metric_{k}" for k in range(keys - 3)]
    for run in range(runs):
        name = f"run{run:05d}"
        server.upsert(project, name, config=json.dumps({"lr": {"value": rng.random()}}))
        lines = [
            json.dumps(
                {"_step": i, "_timestamp": 1.7e9 + i * 0.37, "_runtime": i * 0.37} | {k: rng.random() for k in names}
            )
            for i in range(rows)
        ]
        for start in range(0, rows, 20_000):
            part = {"offset": start, "content": lines[start : start + 20_000]}
            server.stream(project, name, files={"wandb-history.jsonl": part})
        server.stream(project, name, complete=True, exitcode=0)


def env_of(server: Server, url: str, place: Path) -> dict[str, str]:
    """A client's environment with caches that nobody has filled."""
    cache = {"WANDB_CACHE_DIR": tempfile.mkdtemp(dir=place), "NETRC": "/dev/null"}
    return os.environ | server.env | {"WANDB_BASE_URL": url} | cache


class Bench:
    def __init__(self, server: Server, place: Path, repeat: int) -> None:
        self.server, self.place, self.repeat = server, place, repeat

    def sdk(self, project: str, url: str, runs: int) -> Measured:
        command = [sys.executable, "-c", SDK, f"{ENTITY}/{project}", str(runs)]
        return measure(command, env_of(self.server, url, self.place))

    def loop(self, project: str, url: str, page: int) -> Measured:
        command = [sys.executable, "-c", LOOP, f"{ENTITY}/{project}", str(page)]
        return measure(command, env_of(self.server, url, self.place))

    def sync(self, project: str, url: str) -> Measured:
        root = Path(tempfile.mkdtemp(dir=self.place)) / "mirror"
        command = [*MIRROR, "sync", f"{ENTITY}/{project}", "--mirror", str(root)]
        found = measure(command, env_of(self.server, url, self.place))
        shutil.rmtree(root)
        return found


@contextmanager
def replayed(bench: Bench, project: str) -> Iterator[str]:
    """A server that knows the answers to what a sync asks, from a sync it has watched."""
    answers: dict[bytes, Any] = {}
    with proxied(bench.server) as proxy:

        def keep(request: Request, body: Any) -> Any:
            answers[request.body] = json.dumps(body).encode()
            return body

        proxy.after = keep
        others: dict[str, Answer] = {}
        pass_on = proxy.reply

        def reply(request: Request) -> Any:
            answer = pass_on(request)
            if request.path != "/graphql" and isinstance(answer, Answer):
                others[request.path] = answer
            return answer

        proxy.reply = reply
        bench.sync(project, proxy.url)

    def replay(request: Request) -> Answer:
        if request.path != "/graphql":
            return others.get(request.path, Answer(404, b"{}"))
        if request.body not in answers:  # grouped differently than when it was recorded
            missing.append(request.body)
            headers = {"Authorization": request.headers["Authorization"], "Content-Type": "application/json"}
            answers[request.body] = requests.post(
                bench.server.url + "/graphql", data=request.body, headers=headers, auth=lambda r: r, timeout=120
            ).content
        return Answer(200, answers[request.body])

    missing: list[bytes] = []
    with liar(replay) as server:
        while True:  # until a whole sync was answered from memory
            missing.clear()
            bench.sync(project, server.url)
            if not missing:
                break
        yield server.url


def long_runs(bench: Bench, runs: int, rows: int, keys: int) -> None:
    project, total = "long", runs * rows
    fill(bench.server, project, runs, rows, keys)
    url = bench.server.url
    pages = {page: bench.loop(project, url, page) for page in (1_000, 5_000, 20_000)}
    page = min(pages, key=lambda p: pages[p].wall)
    with replayed(bench, project) as memory:
        found = best(
            bench.repeat,
            {
                "sdk": lambda: bench.sdk(project, url, runs),
                "loop": lambda: bench.loop(project, url, page),
                "sync": lambda: bench.sync(project, url),
                "replay": lambda: bench.sync(project, memory),
            },
        )
    for m in found.values():
        assert m.out.strip() == str(total) or f"{total:,} rows" in m.out, m.out
    print(f"\n{runs} runs x {rows} rows x {keys} keys = {total:,} rows; the loop with pages of {page:,}")
    header("way", "s", "rows/s", "client CPU s", "CPU us/row", "peak MB")
    for name, m in found.items():
        rate, each = f"{total / m.wall:,.0f}", f"{m.cpu / total * 1e6:.1f}"
        line(name, f"{m.wall:.2f}", rate, f"{m.cpu:.2f}", each, f"{m.rss:.0f}")
    sdk, loop, sync, replay = (found[name].wall for name in ("sdk", "loop", "sync", "replay"))
    print(f"\nsync is {sdk / sync:.1f}x as fast as the SDK and takes {sync / loop:.2f}x the time of the loop;")
    print(f"with answers from memory it is {sdk / replay:.1f}x as fast as the SDK was.")


def far_away(bench: Bench, runs: int, rows: int, keys: int, latency: float, sdk_runs: int) -> None:
    project = "far"
    fill(bench.server, project, runs, rows, keys)
    with proxied(bench.server) as proxy:
        proxy.before = lambda request: time.sleep(latency)
        sync = bench.sync(project, proxy.url)
        asked = sum(proxy.operations.values())
        proxy.operations.clear()
        sdk = bench.sdk(project, proxy.url, sdk_runs)
        sdk_asked = sum(proxy.operations.values())
    scaled = sdk.wall * runs / sdk_runs
    print(f"\n{runs} runs x {rows} rows x {keys} keys, {latency * 1000:.0f} ms of latency a request")
    header("way", "s", "requests a run", "client CPU s")
    line(
        f"sdk, from {sdk_runs} runs", f"{scaled:.0f}", f"{sdk_asked / sdk_runs:.2f}", f"{sdk.cpu * runs / sdk_runs:.1f}"
    )
    line("sync", f"{sync.wall:.1f}", f"{asked / runs:.3f}", f"{sync.cpu:.1f}")
    print(f"\nsync is {scaled / sync.wall:.0f}x as fast as the SDK.")


def header(*names: str) -> None:
    line(*names)
    print("|" + "---|" * len(names))


def line(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--keys", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=3, help="the best of so many is reported")
    parser.add_argument("--far-runs", type=int, default=1000, help="runs of the variant with latency; 0 leaves it out")
    parser.add_argument("--far-rows", type=int, default=200)
    parser.add_argument("--latency", type=float, default=0.15, help="seconds a request")
    parser.add_argument("--sdk-runs", type=int, default=50, help="runs the SDK reads with latency; scaled up")
    args = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="bench-sync-"))
    try:
        with serving(place / "server") as server:
            bench = Bench(server, place, args.repeat)
            long_runs(bench, args.runs, args.rows, args.keys)
            if args.far_runs:
                far_away(bench, args.far_runs, args.far_rows, args.keys, args.latency, args.sdk_runs)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
