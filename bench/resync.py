"""What a sync costs that finds nothing to do: 10,000 runs with 2 kB of config and 2 kB of summary each.

    python bench/resync.py [--runs 10000] [--repeat 3] [--changed 1] [--profile FILE]

Fills a mirror through the store's own writer, serves it with `mirror serve`, syncs it once and then again: unchanged
(with the twentieth of the runs that is looked at again, and, to tell what that costs, without), and with some runs
changed. Prints requests by kind, seconds and client CPU. Other archivers ask at least five questions a run, every time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from serving import Server, serving
from sync import header, line, measure
from syncing import MIRROR, Proxy, proxied

from mirror.records import Fetched, Run, RunKey
from mirror.store import LOCAL_SOURCE, Writer

PROJECT = "big"
_CREATED = datetime(2025, 1, 1, tzinfo=timezone.utc)
_WITHOUT = "import mirror.sync.plan as p; p.RECHECKED = 0.0; "


def fill(root: Path, runs: int, *, tags: tuple[str, ...] = (), only: range | None = None) -> None:
    """Ended runs as `mirror serve` would hold them, with about 2,000 characters of config and of summary each."""
    with Writer(root) as writer:
        for n in only or range(runs):
            config = {f"optimizer/param_{i}": {"value": n * i / 7} for i in range(50)}
            summary = {f"metric/number_{i}": n / (i + 1) for i in range(50)}
            created = _CREATED + timedelta(minutes=n)
            key = RunKey(LOCAL_SOURCE, f"s{n}", "local", PROJECT, f"run{n:05}")
            run = Run(
                key, name=f"r{n}", state="finished", config=json.dumps(config), summary=json.dumps(summary), tags=tags,
                created_at=created, heartbeat_at=created + timedelta(seconds=50), updated_at=created,
                history_line_count=1, events_line_count=0, log_line_count=0,
                history_keys='{"keys": {"_step": {"typeCounts": [{"type": "number", "count": 1}]}}, "lastStep": 0}',
            )  # fmt: skip
            writer.put_run(run)
            if only is None:
                writer.append(key, "history", ['{"_step": 0, "loss": 0.5}'])
                writer.publish(key, "history", Fetched("history", "serve", got=1, total=1, complete=True))


class Bench:
    def __init__(self, server: Server, proxy: Proxy, place: Path) -> None:
        self.proxy, self.place = proxy, place
        self.env = os.environ | server.env | {"WANDB_BASE_URL": proxy.url, "NETRC": "/dev/null"}

    def sync(self, name: str, repeat: int = 1, before: str = "", profile: str | None = None) -> None:
        """Sync and print a line: the best of `repeat`."""
        script = self.place / "sync.py"
        script.write_text(before + MIRROR[2])
        flags = ["-m", "cProfile", "-o", profile] if profile else []
        command = [MIRROR[0], *flags, str(script), *MIRROR[3:], "sync", f"local/{PROJECT}"]
        rounds = []
        for _ in range(repeat):
            self.proxy.operations.clear()
            found = measure([*command, "--mirror", str(self.place / "copy")], self.env)
            rounds.append((found.cpu, found, Counter(self.proxy.operations)))
        _, found, asked = min(rounds, key=lambda r: r[0])
        kinds = ", ".join(f"{n} {kind}" for kind, n in asked.most_common())
        line(name, f"{found.wall:.1f}", f"{found.cpu:.2f}", f"{sum(asked.values())}", f"{found.rss:.0f}", kinds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=3, help="the best of so many is reported")
    parser.add_argument("--changed", type=int, default=1, help="runs that get a tag before the last sync")
    parser.add_argument("--profile", help="write what cProfile says of an unchanged sync's main thread to this file")
    args = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="bench-resync-"))
    try:
        fill(place / "served", args.runs)
        with serving(place / "served") as server, proxied(server) as proxy:
            bench = Bench(server, proxy, place)
            header("sync", "s", "client CPU s", "requests", "peak MB", "of which")
            bench.sync("first")
            bench.sync("unchanged", args.repeat)
            bench.sync("unchanged, without looking again", args.repeat, _WITHOUT)
            if args.profile:
                bench.sync("profiled", profile=args.profile)
            fill(place / "served", args.runs, tags=("new",), only=range(args.changed))
            bench.sync(f"{args.changed} changed", before=_WITHOUT)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
