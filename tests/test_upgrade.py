"""A mirror that an earlier release wrote is read, continued, merged, repaired and purged by this one."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import schema_2 as old

from mirror.paths import parse
from mirror.query.rows import rows as read_rows
from mirror.records import Run
from mirror.store import Reader, Writer
from mirror.store.purge import purge
from mirror.store.repair import repair

STORES = Path(__file__).parent / "stores"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with tarfile.open(STORES / "schema-2.tar.gz") as store:
        store.extractall(tmp_path, filter="data")
    return tmp_path / "m"


def check(root: Path, *, runs: dict[int, Run] | None = None) -> None:
    """Everything the store was given is there."""
    runs = runs or {1: old.run(1), 2: old.run(2, notes="edited"), 3: old.run(3)}
    with Reader(root) as reader:

        def ask(query: str) -> list[tuple[Any, ...]]:
            return reader.connect().execute(query).fetchall()

        held = ask(
            "select rid, run_id, name, notes, config_raw, summary_raw, metadata, created_at, tags, deleted_at is null, "
            "fork_run_id, fork_step, origin from runs_raw order by run_id"
        )
        assert [row[1:] for row in held] == [
            (
                f"run{n}",
                r.name,
                r.notes,
                r.config,
                r.summary,
                r.metadata,
                old.AT,
                ["a", "b"],
                n != 3,
                r.fork_run_id,
                r.fork_step,
                None,
            )
            for n, r in runs.items()
        ]
        for row in held:
            n = int(row[1][3:])
            assert list(read_rows(reader, row[0], "history")) == old.HISTORY[n]
            assert list(read_rows(reader, row[0], "system")) == old.SYSTEM
        assert ask("select name, size, md5 from files where run_id = 'run1' order by name") == [
            ("b.txt", 3, "bWQ1"), ("media/a.png", 4, None),
        ]  # fmt: skip
        assert ask("select text from logs where run_id = 'run2' order by line") == [("hello",), ("wörld",)]
        assert ask("select num from config where run_id = 'run2' and path = '/lr'") == [(0.2,)]
        assert ask("select description, run_count, deleted_at from projects") == [("about", 3, None)]
        assert ask("select sweep_id, method from sweeps") == [("abc", "grid")]
        assert ask("select collection, version, aliases, size from artifacts") == [("net", 3, ["latest"], 10**13)]
        assert ask("select path, ref from artifact_entries order by path") == [("x", None), ("y", "s3://b/y")]
        assert ask("select run_id, used_as from artifact_uses") == [("run2", "in")]
        assert ask("select title, spec from reports") == [("Title", '{"blocks": []}')]
        assert ask("select error from quarantine") == [("it broke",)]
        assert ask("select outcome, rows from sync_log order by rows") == [("ok", 4), ("partial", 60)]


def test_it_is_read_as_it_is(root: Path) -> None:
    check(root)


def test_equal_records_write_nothing(root: Path) -> None:
    Writer(root).close()
    before = set((root / "data").rglob("*"))
    with Writer(root) as w:
        w.put_project(old.PROJECT)
        for run in (old.run(1), old.run(2, notes="edited")):
            w.put_run(run)
        for item in old.ITEMS:
            w.put_item(item)
    assert set((root / "data").rglob("*")) == before
    check(root)


def upgrade(root: Path) -> None:
    Writer(root).close()


def merge(root: Path) -> None:
    with Writer(root) as w:
        assert w.compact(everything=True).made


def lose_the_catalog(root: Path) -> None:
    (root / "catalog.sqlite").unlink()
    assert repair(root).rebuilt_catalog


def lose_catalog_and_snapshot(root: Path) -> None:
    (root / "snapshot.json").unlink()
    lose_the_catalog(root)


@pytest.mark.parametrize("change", [upgrade, merge, lose_the_catalog, lose_catalog_and_snapshot])
def test_it_is_continued(root: Path, change: Callable[[Path], None]) -> None:
    change(root)
    check(root)
    forked = replace(old.run(1), fork_run_id="run2", fork_step=1)
    with Writer(root) as w:
        w.put_run(forked)
    merge(root)
    check(root, runs={1: forked, 2: old.run(2, notes="edited"), 3: old.run(3)})


def test_it_can_be_purged(root: Path) -> None:
    purge(root, [parse("me/digits")])
    with Reader(root) as reader:
        for table in ("runs", "history", "projects", "artifacts", "sync_log", "quarantine"):
            assert reader.connect().execute(f"select count(*) from {table}").fetchone() == (0,)
