"""`mirror sync` of some runs only, and again and again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
from serving import Server, serving
from syncing import Copy, log_run, logged

from mirror.cli.selection import moment, server_filter
from mirror.errors import UsageError

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server") / "m") as server:
        for n in range(6):
            log_run(server, "p", f"r{n}", logged(3), config=json.dumps({"lr": {"value": n / 10}}), finish=n % 2 == 0)
        log_run(server, "scratch-1", "x", logged(1))
        yield server


def names(copy: Copy) -> set[str]:
    return {f"{project}/{run_id}" for project, run_id in copy.sql("select project, run_id from runs")}


def test_only_runs_that_meet_the_filter_are_fetched_and_the_others_are_not_gone(server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", server.url, server.key)
    copy.sync("local/p", "--filter", '{"config.lr": {"$gte": 0.3}}')
    assert names(copy) == {"p/r3", "p/r4", "p/r5"}
    for _ in range(3):
        copy.sync("local/p", "--state", "finished", "--filter", '{"config.lr": {"$lt": 0.3}}')
    assert names(copy) == {"p/r0", "p/r2", "p/r3", "p/r4", "p/r5"}
    assert copy.sql("select count(*) from runs where deleted_at is not null") == [(0,)]
    [(count,)] = copy.sql("select run_count from projects where project = 'p'")
    assert count == 6


def test_time_and_globs_select(server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", server.url, server.key)
    copy.sync("local", "--since", "2999-01-01")
    assert names(copy) == set()
    copy.sync("local", "--since", "1d", "--exclude", "local/scratch*", "--exclude", "*/r[1-4]")
    assert names(copy) == {"p/r0", "p/r5"}
    copy.sync("local/p")
    assert len(names(copy)) == 6


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--since", "yesterday"], "`yesterday` is no time"),
        (["--since", "99999999999w"], "longer ago than there are dates"),
        (["--filter", "{"], "filter"),
        (["--filter", '{"config.lr": {"$near": 1}}'], "$near"),
        (["--filter", "@/nowhere"], "cannot read the filter `@/nowhere`"),
        (["--watch", "0"], "--watch"),
        (["--watch", "5", "--dry-run"], "leave out one of them"),
    ],
)
def test_a_wrong_selection_is_refused_before_anything_is_asked(tmp_path: Path, args: list[str], said: str) -> None:
    copy = Copy(tmp_path / "m", "http://127.0.0.1:1", "k" * 40)
    done = copy.sync("local/p", *args, ok=False)
    assert done.exit_code == 2 and said in done.stderr
    assert not copy.root.exists()


def test_options_become_one_filter() -> None:
    assert server_filter(None, None, (), NOW) is None
    assert json.loads(server_filter(None, None, ("finished", "failed"), NOW) or "") == {
        "state": {"$in": ["finished", "failed"]}
    }
    found = server_filter('{"config.a": 1}', "36h", (), NOW)
    assert json.loads(found or "") == {"$and": [{"config.a": 1}, {"heartbeatAt": {"$gte": "2026-03-02T17:06:07Z"}}]}
    assert moment("2026-01-31T12:00:00+01:00", NOW) == datetime(2026, 1, 31, 11, tzinfo=timezone.utc)
    with pytest.raises(UsageError):
        moment("31.1.2026", NOW)


@pytest.mark.slow
def test_watching_follows_runs_and_stops_cleanly(server: Server, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "m", server.url, server.key)
    log_run(server, "live", "r", logged(2), finish=False)
    command = [*copy.command("local/live"), "--watch", "1", "-q"]
    with subprocess.Popen(command, env=os.environ | copy.environ(), stderr=subprocess.PIPE, text=True) as process:
        try:
            for total in (2, 5, 9):
                if total > 2:
                    held = 2 if total == 5 else 5
                    log_run(server, "live", "r", logged(total - held, held), offset=held, finish=False)
                end = time.monotonic() + 300
                while time.monotonic() < end:
                    there = copy.runs("live") if (copy.root / "snapshot.json").exists() else {}
                    if there and there["r"]["history_rows"] == total:
                        break
                    time.sleep(0.2)
                else:
                    raise AssertionError(f"{total} rows did not come")
        finally:
            process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert stderr == "Stopped. Everything fetched so far is in the mirror.\n"
    assert [row["_step"] for row in copy.rows("live", "r")] == list(range(9))
