"""`kill -9` at any moment: what ends up in the mirror is what an undisturbed run of the program leaves there."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from chance import seed
from serving import Server, serving
from starting import Started, run_mirror
from syncing import log_run
from watcher import ROWS

from mirror.query.rows import rows as read_rows
from mirror.store import Reader, Writer
from mirror.store.compact import vacuum

pytestmark = pytest.mark.slow
PROJECT = "killed"
SEED = seed("MIRROR_KILL_SEED")


def history(n: int) -> list[dict[str, Any]]:
    """Different for every run, with a repeated step, nesting, a string and a non-finite number in it."""
    length = (n * 37) % 400
    return [
        {
            "_step": s - (s == 7),
            "_timestamp": 1.7e9 + s,
            "loss": math.nan if s % 50 == 49 else n / (s + 1),
            "a": {"b": s},
        }
        | ({"note": f"é {s}"} if s % 10 == 0 else {})
        for s in range(length)
    ]


def fill(server: Server, runs: int = 200) -> None:
    def log(n: int) -> None:
        system = [{"_timestamp": 1.7e9 + s, "system.cpu": s + n / 7} for s in range(n % 5)]
        config = json.dumps({"n": {"value": n}, "lr": {"value": n / 7}})
        log_run(server, PROJECT, f"run{n:03d}", history(n), system=system, config=config, summary={"n": n})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(log, range(runs)))


def content(root: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Everything a user can see, without numbers that only this store gave (rids, times of writing)."""
    queries = {
        "runs": "select * exclude (rid, mirrored_at) from runs",
        "history": "select * exclude (rid) from history",
        "system_metrics": "select * exclude (rid) from system_metrics",
        "config": "select * exclude (rid) from config",
        "summary": "select * exclude (rid) from summary",
        "metrics": "select * exclude (rid) from metrics",
        "files": "select * exclude (rid, url) from files",
        "logs": "select * exclude (rid) from logs",
        "quarantine": "select * from quarantine",
    }
    with Reader(root) as reader:
        db = reader.connect()
        return {name: sorted(db.execute(q).fetchall(), key=repr) for name, q in queries.items()}


def same(found: dict[str, list[tuple[Any, ...]]], calm: dict[str, list[tuple[Any, ...]]]) -> None:
    for name, rows in calm.items():
        expected, got = set(map(repr, rows)), set(map(repr, found[name]))
        assert len(rows) == len(found[name]) and got == expected, (
            f"{name}: {len(found[name])} rows for {len(rows)}",
            sorted(got - expected)[:3],
            sorted(expected - got)[:3],
        )


def sync(server: Server, root: Path) -> list[str]:
    return ["sync", f"local/{PROJECT}", "--base-url", server.url, "--mirror", str(root), "--quiet"]


def environment(server: Server) -> dict[str, str]:
    return {**os.environ, **server.env, "MIRROR_FLUSH_SECONDS": "0.05"}


@contextmanager
def watched(root: Path, truth: Path) -> Iterator[None]:
    """A second process queries `root` all through the block and never sees an error or half a state."""
    command = [sys.executable, str(Path(__file__).with_name("watcher.py")), str(root), str(truth)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        try:
            yield
        finally:
            assert watcher.stdout is not None and watcher.stdout.readline() == "WATCHING\n"
            watcher.terminate()
            said = watcher.communicate(timeout=300)[0].splitlines()
    assert said[:-1] == []
    assert said[-1].startswith("LOOKS") and int(said[-1].split()[1]) >= 1, said


def truth_of(root: Path, file: Path) -> Path:
    with Reader(root) as reader:
        reader.connect().execute(f"copy ({ROWS}) to '{file}'")
    return file


def test_a_sync_killed_twenty_times(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    with serving(tmp_path / "server") as server:
        fill(server)
        began = time.monotonic()
        run_mirror(sync(server, tmp_path / "calm"), env=environment(server), check=True, timeout=300)
        duration = time.monotonic() - began
        calm = content(tmp_path / "calm")
        assert len(calm["runs"]) == 200
        truth = truth_of(tmp_path / "calm", tmp_path / "truth.parquet")
        kills = mirrors = 0
        while kills < 20:  # a mirror that is complete before its twentieth kill is followed by a fresh one
            mirrors += 1
            root = tmp_path / f"killed{mirrors}"
            with watched(root, truth):
                complete = False
                while kills < 20 and not complete:
                    with Started(sync(server, root), env=environment(server)) as process:
                        time.sleep(chance.uniform(0.02, 0.4 * duration))  # it goes on where it was killed
                        if complete := process.poll() is not None:
                            assert process.returncode == 0
                        else:
                            process.kill()
                            kills += 1
                run_mirror(sync(server, root), env=environment(server), check=True, timeout=300)
                same(content(root), calm)
            left = [p for p in root.rglob("*") if p.suffix == ".tmp" or p.parent.name == "sessions"]
            assert left == []
            with Writer(root) as writer:  # what compaction replaced goes after its grace period; nothing else is left
                vacuum(writer.layout, writer.catalog, grace=timedelta(0))
            with Reader(root) as reader:
                assert {str(p) for p in (root / "data").rglob("*.parquet")} == set(reader.files)
        print("kills", kills, "mirrors", mirrors)


def test_a_server_killed_twenty_times_while_runs_log(tmp_path: Path) -> None:
    """Clients send their rows again until they are acknowledged, as the SDK does; each row arrives once."""
    chance = random.Random(SEED)
    runs = 12
    rows = {n: history(n * 11 + 30) or history(9) for n in range(runs)}
    with serving(tmp_path / "server") as server:

        def insist(send: Any) -> None:
            while True:
                try:
                    if (answer := send()) is None or answer.ok:
                        return
                    assert answer.status_code >= 500, answer.text
                except (requests.RequestException, AssertionError) as e:
                    if isinstance(e, AssertionError) and " 5" not in f" {e}":
                        raise
                time.sleep(0.2)

        def log(n: int) -> None:
            name = f"run{n:03d}"
            insist(lambda: server.upsert(PROJECT, name, config=json.dumps({"n": {"value": n}})) and None)
            lines = [json.dumps(row) for row in rows[n]]
            for start in range(0, len(lines), 7):
                part = {"offset": start, "content": lines[start : start + 7]}
                insist(lambda part=part: server.stream(PROJECT, name, files={"wandb-history.jsonl": part}))
                time.sleep(0.15)
            insist(lambda: server.stream(PROJECT, name, complete=True, exitcode=0))

        with ThreadPoolExecutor(runs) as pool:
            jobs = [pool.submit(log, n) for n in range(runs)]
            for _ in range(20):
                time.sleep(chance.uniform(0.05, 0.6))
                server.kill()
                server.start()
            for job in jobs:
                job.result(timeout=300)
        server.stop()
        server.start()
        with Reader(tmp_path / "server") as reader:
            found = (
                reader.connect().execute("select rid, run_id, state, history_rows from runs order by run_id").fetchall()
            )
            assert [row[1:] for row in found] == [(f"run{n:03d}", "finished", len(rows[n])) for n in range(runs)]
            for rid, _, _, _ in found:
                logged = rows[found.index(next(f for f in found if f[0] == rid))]
                assert repr(list(read_rows(reader, rid))) == repr([dict(sorted(row.items())) for row in logged]) or [
                    json.dumps(row, sort_keys=True) for row in read_rows(reader, rid)
                ] == [json.dumps(row, sort_keys=True) for row in logged]
