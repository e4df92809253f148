"""Memory of a sync stays flat, whatever a run holds: measured on the process of `mirror sync` itself."""

from __future__ import annotations

import json
import random
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Server, serving
from syncing import Copy, log_run, logged

from mirror.query.rows import rows as read_rows
from mirror.store import Reader

LIMIT_MB = 500


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("served") / "mirror") as server:
        yield server


def peak_mb(copy: Copy, *paths: str) -> float:
    """Sync in a process of its own; the most memory it ever held, in MB.

    Asked of the kernel while it runs: what wait4 tells includes the memory of this process, which forked it.
    """
    process = subprocess.Popen(copy.command(*paths), env=copy.environ())
    status = Path(f"/proc/{process.pid}/status")
    peak = 0
    while process.poll() is None:
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        peak = int(found[1]) if found else peak
        time.sleep(0.02)
    assert process.returncode == 0
    return peak / 1024


@pytest.mark.slow
def test_a_run_of_a_million_rows(server: Server, tmp_path: Path) -> None:
    n = 1_000_000
    for start in range(0, n, 100_000):
        log_run(server, "long", "r", logged(100_000, start), offset=start, finish=start + 100_000 == n)
    copy = Copy(tmp_path / "copy", server.url, server.key)
    peak = peak_mb(copy, "local/long")
    print(f"peak RSS of a sync of 1,000,000 rows: {peak:.0f} MB")
    run = copy.runs("long")["r"]
    assert (run["history_rows"], run["history_complete"]) == (n, True)
    sums = copy.sql("select key, count(*), sum(value) from history group by key order by key")
    assert [(key, count) for key, count, _ in sums] == [
        (key, n) for key in ("_runtime", "_step", "_timestamp", "epoch", "loss")
    ]
    assert sums[1][2] == n * (n - 1) // 2
    assert peak <= LIMIT_MB


@pytest.mark.slow
def test_a_run_of_ten_thousand_keys(server: Server, tmp_path: Path) -> None:
    """Three million cells are 140 MB as they come over the wire, which would not fit into the limit beside the rest,
    and several times that once they are parsed."""
    numbers = random.Random(7)
    keys = [f"layer{i // 100}/weight{i % 100}/norm" for i in range(10_000)]

    def row(step: int) -> dict[str, Any]:
        return {"_step": step} | {key: numbers.random() for key in keys}

    rows = [json.dumps(row(step)) for step in range(300)]
    for start in range(0, 300, 10):
        log_run(server, "wide", "r", rows[start : start + 10], offset=start, finish=start == 290)
    copy = Copy(tmp_path / "copy", server.url, server.key)
    peak = peak_mb(copy, "local/wide")
    print(f"peak RSS of a sync of 300 rows of 10,000 keys: {peak:.0f} MB")
    with Reader(copy.root) as reader:
        for step in (0, 149, 299):
            (got,) = read_rows(reader, copy.runs("wide")["r"]["rid"], min_step=step, max_step=step + 1)
            assert got == json.loads(rows[step])
    assert copy.sql("select count(*) from history") == [(300 * 10_001,)]
    assert peak <= LIMIT_MB


@pytest.mark.slow
def test_cells_of_a_megabyte(server: Server, tmp_path: Path) -> None:
    """Nothing tells how long texts are before they come; an answer that grows too long is asked for in parts."""
    for start in range(0, 200, 5):
        rows = [{"_step": i, "loss": 0.5, "text": chr(97 + i % 26) * 1_000_000} for i in range(start, start + 5)]
        log_run(server, "heavy", "r", rows, offset=start, finish=start == 195)
    copy = Copy(tmp_path / "copy", server.url, server.key)
    peak = peak_mb(copy, "local/heavy")
    print(f"peak RSS of a sync of 200 rows of 1 MB: {peak:.0f} MB")
    found = copy.sql("select count(*), sum(length(text)), count(distinct text) from history where key = 'text'")
    assert found == [(200, 200_000_000, 26)]
    assert peak <= LIMIT_MB
