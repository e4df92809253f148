"""Exports of many short runs, of a few long ones and of wide ones, against a plain COPY of the same cells.

    python bench/export.py [--shape 2000x50x5 ...] [--format csv ...]

A shape is RUNSxROWSxKEYS; `_step`, `_timestamp` and `_runtime` come in addition. Makes a mirror of each shape, then
exports every history to a file per run and to one file, and asks for all of them as data frames, each in a process of
its own. `ratio` is the CPU time of an export, of reading and of all of Python, by that of the floor: DuckDB's COPY of
all live cells to one CSV file, in a process of its own, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

from mirror.records import Fetched, Project, Run, RunKey
from mirror.store import Writer

_SHAPES = ["2000x50x5", "20000x10x5", "1x1000000x5", "20x100x10000"]
_FORMATS = ["csv", "jsonl", "parquet"]
_BATCH = 10_000  # rows
_COPY = """
import sys
from mirror.store import Reader
reader = Reader(sys.argv[1])
query = "select rid, key, path_id, row, step, kind, v, j from raw.history_live"
reader.connect().execute(f"copy ({query}) to '{sys.argv[2]}' (format csv)")
"""
_FRAME = """
import sys, warnings
warnings.simplefilter("ignore")
import mirror
found = mirror.Api(sys.argv[1]).runs("me/p").histories(samples=500, format="pandas")
print(len(found), file=sys.stderr)
"""


def fill(root: Path, runs: int, rows: int, keys: int) -> None:
    """A mirror of one project with so many runs, whose rows have so many metrics."""
    with Writer(root) as writer:
        writer.put_project(Project("bench", "me", "p", storage_id="p"))
        for n in range(runs):
            key = RunKey("bench", f"s{n}", "me", "p", f"run{n:05}")
            writer.put_run(Run(key, name=f"r{n}", state="finished", config="{}", summary="{}"))
            for start in range(0, rows, _BATCH):
                lines = [_line(n, row, keys) for row in range(start, min(rows, start + _BATCH))]
                writer.append(key, "history", lines)
            writer.publish(key, "history", Fetched("history", "rows", got=rows, total=rows, complete=True))
        writer.compact()


def _line(n: int, row: int, keys: int) -> str:
    own = {"_step": row, "_timestamp": 1.7e9 + row / 3, "_runtime": row / 3}
    return json.dumps(own | {f"metric/{k:05}": (n + k + 1) / (row + 1) for k in range(keys)})


def measured(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak MB of a process that must succeed."""
    began = time.perf_counter()
    child = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert child.stderr is not None
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{command} failed: {said.decode()}")
    scale = 1024 if sys.platform == "linux" else 1 << 20
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / scale


def bench(place: Path, shape: str, formats: list[str]) -> None:
    runs, rows, keys = map(int, shape.split("x"))
    root = place / shape
    # In a process of its own: the peak of a child counts from what its parent holds.
    child = get_context("spawn").Process(target=fill, args=(root, runs, rows, keys))
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"no mirror of {shape} could be made")
    python = sys.executable
    floor = measured([python, "-c", _COPY, str(root), str(place / f"{shape}.cells.csv")])
    print(f"| {runs:,} x {rows:,} x {keys:,} | COPY of cells | {_figures(floor)} | 1.0 |", flush=True)
    export = [python, "-m", "mirror", "export", "me/p", "--mirror", str(root), "--what", "history"]
    asked: list[tuple[str, list[str]]] = []
    for format in formats:
        out = place / f"{shape}.{format}.d"
        asked.append((f"a {format} file a run", [*export, "--format", format, "-o", str(out)]))
        asked.append((f"one {format} file", [*export, "--one-file", "-o", str(place / f"{shape}.{format}")]))
    if rows * runs <= 1_000_000 and keys < 100:
        asked.append(("Runs.histories()", [python, "-c", _FRAME, str(root)]))
    for name, command in asked:
        took = measured(command)
        print(f"| | {name} | {_figures(took)} | {took[1] / floor[1]:.1f} |", flush=True)


def _figures(took: tuple[float, float, float]) -> str:
    return f"{took[0]:.1f} s | {took[1]:.1f} s | {took[2]:,.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", help=f"[default: {' '.join(_SHAPES)}]")
    parser.add_argument("--format", action="append", help=f"[default: {' '.join(_FORMATS)}]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-export-") as place:
        print("| runs x rows x keys | what | wall | CPU | peak | ratio |\n| --- | --- | --- | --- | --- | --- |")
        for shape in args.shape or _SHAPES:
            bench(Path(place), shape, args.format or _FORMATS)


if __name__ == "__main__":
    main()
