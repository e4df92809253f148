"""What objects cost: runs one after another with config and summary, one run by its path, histories of a long run.

    python bench/objects.py [--runs 10000] [--rows 1000000] [--repeat 5] [--root DIR]

Fills DIR (kept, and used again) and prints the best of `--repeat` times beside the floor: `json.loads` of the same
documents, which were read before.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mirror
from mirror.records import Run, RunKey


def fill(root: Path, runs: int, rows: int) -> None:
    config = {f"key{i}": {"value": {"lr": i / 7, "name": f"value {i}", "layers": [i, i + 1]}} for i in range(25)}
    summary = {f"metric/{i}": i / 3 for i in range(80)}
    with mirror.open(root, write=True) as m:
        m.put_runs(
            Run(
                RunKey("lab.example", f"S{n}", "me", "many", f"run{n}"), name=f"run {n}", state="finished",
                config=json.dumps(config | {"seed": {"value": n}}), summary=json.dumps(summary | {"loss": 1 / (n + 1)}),
            )
            for n in range(runs)
        )  # fmt: skip
        long = RunKey("lab.example", "L", "me", "long", "million")
        m.put_runs([Run(long)])
        m.put_history(
            long,
            (
                {"_step": i, "_timestamp": 1.7e9 + i, "loss": 1 / (i + 1), "epoch": i // 1000}
                | ({"acc": i / rows} if i % 10 == 0 else {})
                for i in range(rows)
            ),
        )


def best(what: str, call: Callable[[], Any], repeat: int) -> float:
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    print(f"| {what} | {1000 * times[0]:,.0f} | {1000 * min(times):,.1f} |", flush=True)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--root", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        root: Path = args.root or Path(folder) / "mirror"
        if not (root / "snapshot.json").exists():
            fill(root, args.runs, args.rows)
        print("| what | first ms | best ms |\n| --- | ---: | ---: |")
        repeat = args.repeat
        best("Api(root).run(path)", lambda: mirror.Api(root).run("me/many/run77"), repeat)
        api = mirror.Api(root)
        best("api.run(path)", lambda: api.run("me/many/run77"), repeat)
        best("api.run(path).config", lambda: api.run("me/many/run77").config, repeat)
        best("len(api.runs(project))", lambda: len(api.runs("me/many")), repeat)
        walked = best("config and summary of all", lambda: [(r.config, r.summary) for r in api.runs("me/many")], repeat)
        query = "select config_raw, summary_raw from runs_raw where project = 'many'"
        with mirror.open(root) as m:
            texts = m.sql(query).fetchall()
        floor = best("json.loads of the same", lambda: [(json.loads(a), json.loads(b)) for a, b in texts], repeat)
        run = api.run("me/long/million")
        best("history(keys=[one in all rows])", lambda: run.history(keys=["loss"]), repeat)
        best("history(keys=[one in a tenth of the rows])", lambda: run.history(keys=["acc"]), repeat)
        best("history()", run.history, repeat)
        best("scan_history(keys=[one])", lambda: sum(1 for _ in run.scan_history(keys=["loss"])), 1)
        best("scan_history()", lambda: sum(1 for _ in run.scan_history()), 1)
        print(f"\nconfig and summary of {len(texts):,} runs: {walked / floor:.1f}x the time of json.loads")


if __name__ == "__main__":
    main()
