"""`mirror status`: what is mirrored, how fresh, how complete."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import asking
import pytest

from mirror.errors import NotFoundError
from mirror.paths import parse
from mirror.query.status import since, status
from mirror.records import Failure, Project, SyncReport
from mirror.store import Reader, Writer

NOW = datetime(2025, 6, 1, 12, tzinfo=timezone.utc)


def report(project: str, outcome: str, at: datetime, **more: Any) -> SyncReport:
    return SyncReport("lab.example", "team", project, at - timedelta(minutes=1), at, outcome, **more)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return asking.fill(tmp_path / "m")


def projects(root: Path, path: str | None = None) -> dict[str, dict[str, Any]]:
    with Reader(root) as reader:
        found = status(reader, parse(path) if path else None)
    return {f"{p['source']}:{p['project']}": p for p in found.projects}


def text(root: Path, *args: str) -> str:
    command = [sys.executable, "-m", "mirror", "status", *args, "--mirror", str(root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_mirrored(root: Path) -> None:
    found = projects(root)
    assert set(found) == {"lab.example:digits", "lab.example:hostile", "lab.example:shared", "other.example:shared"}
    digits = found["lab.example:digits"]
    assert (digits["runs"], digits["incomplete"], digits["history_rows"], digits["deleted"]) == (3, 0, 150, 0)
    assert set(projects(root, "team/digits")) == {"lab.example:digits"}
    assert len(projects(root, "team")) == 4
    out = text(root)
    assert "4 projects, 14 runs, 150 rows of history; snapshot" in out.splitlines()[0]
    assert "On disk: " in out and "history" in out
    with Reader(root) as reader, pytest.raises(NotFoundError):
        status(reader, parse("team/nothing"))


def test_how_complete(root: Path) -> None:
    asking.incomplete(root)
    with Reader(root) as reader:
        found = status(reader, parse("team/digits"))
    (row,) = found.incomplete
    assert (row["path"], row["history_rows"], row["history_total"], row["history_note"], row["state"]) == (
        "team/digits/short", 1, 10, "9 missing", "running",
    )  # fmt: skip
    assert found.projects[0]["incomplete"] == 1 and found.projects[0]["running"] == 1
    out = text(root, "team/digits")
    assert "Incomplete: 1 run\n" in out and "9 missing" in out


def test_a_sync_that_changed_nothing_counts_as_fresh(root: Path) -> None:
    with Writer(root) as writer:
        writer.log_sync(report("digits", "ok", NOW - timedelta(days=2), runs_new=3))
    assert projects(root)["lab.example:digits"]["last_sync"] == NOW - timedelta(days=2)
    snapshot = (root / "snapshot.json").read_bytes()
    with Writer(root) as writer:
        writer.log_sync(report("digits", "ok", NOW))
    assert (root / "snapshot.json").read_bytes() == snapshot
    assert projects(root)["lab.example:digits"]["last_sync"] == NOW
    assert projects(root)["lab.example:hostile"]["last_sync"] is None


def test_without_the_catalog_the_last_logged_sync_is_told(root: Path) -> None:
    with Writer(root) as writer:
        writer.log_sync(report("digits", "ok", NOW, runs_new=3))
    (root / "catalog.sqlite").unlink()
    assert projects(root)["lab.example:digits"]["last_sync"] == NOW


def test_unreachable_projects_keep_their_runs_and_say_why(root: Path) -> None:
    with Writer(root) as writer:
        writer.log_sync(report("digits", "unreachable", NOW, message="permission denied [/red]\x1b[31m"))
        writer.log_sync(report("gone", "unreachable", NOW, message="never seen"))
    found = projects(root)
    assert found["lab.example:digits"]["outcome"] == "unreachable" and found["lab.example:digits"]["runs"] == 3
    assert found["lab.example:gone"]["runs"] == 0
    out = text(root)
    assert "team/digits: unreachable: permission denied [/red]\\x1b[31m" in out and "\x1b" not in out
    assert set(projects(root, "team/gone")) == {"lab.example:gone"}


def test_quarantine_is_listed_until_it_is_mended(root: Path) -> None:
    key = asking.key("run1")
    with Writer(root) as writer:
        writer.quarantine(Failure(key, "history", "HTTP 500 for ever", 3, NOW))
    with Reader(root) as reader:
        (row,) = status(reader).quarantined
    assert (row["path"], row["stage"], row["attempts"], row["next_try"]) == ("team/digits/run1", "history", 3, NOW)
    assert "In quarantine: 1 run\n" in text(root) and "HTTP 500 for ever" in text(root)
    with Writer(root) as writer:
        writer.mended(key, "history")
    with Reader(root) as reader:
        assert status(reader).quarantined == []


def test_deleted_runs_are_counted_and_not_missed_as_incomplete(root: Path) -> None:
    asking.incomplete(root)
    with Writer(root) as writer:
        writer.tombstone(asking.key("short"))
    digits = projects(root)["lab.example:digits"]
    assert (digits["runs"], digits["deleted"], digits["incomplete"]) == (4, 1, 0)


def test_sizes_add_up(root: Path) -> None:
    with Reader(root) as reader:
        found = status(reader)
    assert found.on_disk["total"] == sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
    assert sum(size for name, size in found.on_disk.items() if name != "total") == found.on_disk["total"]
    on_disk = sum(p.stat().st_size for p in (root / "data" / "history").rglob("*.parquet"))
    assert found.on_disk["history"] == on_disk


def test_json_for_scripts(root: Path) -> None:
    asking.incomplete(root)
    found = json.loads(text(root, "--format", "json"))
    assert found["incomplete"][0]["path"] == "team/digits/short"
    assert {p["project"] for p in found["projects"]} == {"digits", "hostile", "shared"}


def test_an_empty_mirror(tmp_path: Path) -> None:
    with Writer(tmp_path / "m") as writer:
        writer.put_project(Project("lab.example", "team", "empty"))
    assert "Nothing is mirrored yet" not in text(tmp_path / "m")
    with Writer(tmp_path / "n"):
        pass
    assert "Nothing is mirrored yet: `mirror sync ENTITY/PROJECT` pulls a project." in text(tmp_path / "n")


def test_since() -> None:
    ago = [timedelta(seconds=5), timedelta(minutes=5), timedelta(hours=5), timedelta(days=5), timedelta(days=-1)]
    assert [since(NOW - t, NOW) for t in ago] == ["just now", "5 min ago", "5 h ago", "5 d ago", "just now"]
