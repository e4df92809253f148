"""What one changed run costs in a project of 100,000 runs.

    python bench/commit.py [--runs 100000] [--root DIR]

Prints the median time of a commit that changes one run's tags and appends 100 rows to its history, beside two floors in
the same run: writing and flushing as many files of the same size, and the same commit in an empty mirror.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

from mirror.records import Fetched, Run, RunKey
from mirror.store import Writer


def run(n: int, **more: object) -> Run:
    config = {f"p{i}": {"value": n * i / 7} for i in range(20)}
    summary = {f"m{i}": n / (i + 1) for i in range(15)}
    key = RunKey("bench", f"s{n}", "me", "big", f"run{n}")
    return Run(key, name=f"r{n}", state="finished", config=json.dumps(config), summary=json.dumps(summary), **more)  # type: ignore[arg-type]


def change(root: Path, n: int, mark: int) -> tuple[float, list[int]]:
    """Seconds from opening the mirror to the commit being visible; sizes of the files it wrote."""
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}
    began = time.perf_counter()
    writer = Writer(root)
    writer.put_run(run(n, tags=(f"t{mark}",)))
    writer.append(run(n).key, "history", [json.dumps({"_step": s, "loss": s / 2}) for s in range(100)])
    writer.publish(run(n).key, "history", Fetched("history", "rows"))
    writer.commit()
    took = time.perf_counter() - began
    writer.close()
    new = [p for p in root.rglob("*") if p.suffix in (".parquet", ".json") and before.get(p) != p.stat().st_mtime_ns]
    return took, [p.stat().st_size for p in new]


def floor(folder: Path, sizes: list[int]) -> float:
    began = time.perf_counter()
    for i, size in enumerate(sizes):
        with (folder / str(i)).open("wb") as f:
            f.write(os.urandom(size))
            f.flush()
            os.fsync(f.fileno())
        (folder / str(i)).rename(folder / f"{i}.done")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--root", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = args.root or Path(scratch) / "mirror"
        began = time.perf_counter()
        with Writer(root) as writer:
            for n in range(args.runs):
                writer.put_run(run(n))
        print(f"filled with {args.runs:,} runs in {time.perf_counter() - began:.0f} s")
        Writer(Path(scratch) / "empty").close()
        times, floors, empties = [], [], []
        for i in range(15):
            took, sizes = change(root, i * 977 % args.runs, i)
            times.append(took)
            place = Path(scratch) / f"floor{i}"
            place.mkdir()
            floors.append(floor(place, sizes))
            empties.append(change(Path(scratch) / "empty", i, i)[0])
        took, least, empty = (statistics.median(t) for t in (times, floors, empties))
        slowest = max(times) * 1000
        print(f"one changed run: {took * 1000:.0f} ms (slowest {slowest:.0f} ms), {len(sizes)} files, {sum(sizes):,} B")
        print(f"the same files, only written: {least * 1000:.0f} ms, ratio {took / least:.1f}")
        print(f"the same in an empty mirror: {empty * 1000:.0f} ms, ratio {took / empty:.1f}")
        print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
