"""A disk without room: a real limit of the kernel on the size of every file that a command writes."""

from __future__ import annotations

import random
import resource
import subprocess
from pathlib import Path

from serving import serving
from syncing import MIRROR, Copy, log_run, logged

LIMIT = 200_000


def small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


def test_a_sync_on_a_full_disk_loses_nothing_and_goes_on_later(tmp_path: Path) -> None:
    chance = random.Random(1)
    with serving(tmp_path / "server") as server:
        log_run(server, "p", "small", logged(10))
        copy = Copy(tmp_path / "copy", server.url, server.key)
        copy.sync("local/p")
        held = {name: about for name, about in copy.files().items() if name.endswith(".parquet")}
        log_run(server, "p", "large", [{"_step": s, "x": chance.random()} for s in range(40_000)])
        done = subprocess.run(
            copy.command("local/p"),
            env=copy.environ(),
            capture_output=True,
            text=True,
            preexec_fn=small_files,
            timeout=300,
        )
        assert done.returncode == 1
        (line,) = [line for line in done.stderr.splitlines() if "disk" in line]
        assert "the disk is full while writing `data/history/" in line and "free some space" in line
        assert "Traceback" not in done.stderr
        assert held.items() <= copy.files().items()
        assert len(copy.rows("p", "small")) == 10
        copy.sync("local/p")
        assert copy.sql("select run_id, history_rows, history_complete from runs order by 1") == [
            ("large", 40_000, True),
            ("small", 10, True),
        ]


def test_an_export_on_a_full_disk_leaves_no_half_file(tmp_path: Path) -> None:
    with serving(tmp_path / "server") as server:
        log_run(server, "p", "run", [{"_step": s, "x": s / 7} for s in range(20_000)])
    out = tmp_path / "out.csv"
    command = [*MIRROR, "sql", "select * from history", "--mirror", str(tmp_path / "server"), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=small_files, timeout=300)
    assert done.returncode == 1 and done.stderr.startswith("Error: ") and len(done.stderr.splitlines()) == 1, (
        done.stderr
    )
    assert not out.exists() and [p.name for p in tmp_path.iterdir() if "out" in p.name] == []
