"""The store on its own: what is put comes out, commits are whole, versions replace each other."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

import mirror
from mirror.errors import LockedError, StoreError, UsageError
from mirror.records import Failure, Fetched, FileEntry, Project, Run, RunKey, SyncReport
from mirror.store import Reader, Spool, Writer
from mirror.store.catalog import Catalog, now, peek
from mirror.store.cells import fingerprint, rows_as_dicts
from mirror.store.compact import vacuum
from mirror.store.repair import repair
from mirror.store.schema import COLUMNS_SINCE, columns, tables


def key(n: int = 1, *, project: str = "digits", source: str = "lab") -> RunKey:
    return RunKey(source, f"storage-{n}", "me", project, f"run{n}")


@contextmanager
def session(root: Path) -> Iterator[Writer]:
    """One of many small ones, without mirror.duckdb, which costs the most of it: nobody looks at it in between."""
    with Writer(root) as writer:
        yield writer
        writer.commit()
        writer._committer._stale = False


def run(n: int = 1, **more: Any) -> Run:
    more.setdefault("config", json.dumps({"lr": {"value": n / 10}, "_wandb": {"value": {"t": {}}}}))
    more.setdefault("summary", json.dumps({"loss": 1 / n}))
    return Run(key(n), name=f"run {n}", state="finished", tags=("a", "b"), **more)


def rows(n: int, start: int = 0) -> list[str]:
    return [json.dumps({"_step": s, "_timestamp": 1.7e9 + s, "loss": 1 / (s + 1)}) for s in range(start, start + n)]


def whole(reader: Reader, rid: int = 1, table: str = "history", gen: str = "history_gen") -> list[dict[str, Any]]:
    query = f"select t.* from {reader.relation(table, rid)} t join raw.live l on l.rid = t.rid and l.{gen} = t.gen"
    return list(rows_as_dicts(reader.connect().sql(f"{query} order by row, key").to_arrow_table()))


def one(root: Path, query: str) -> Any:
    with Reader(root) as reader:
        return reader.connect().execute(query).fetchone()


def files(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}


def test_what_is_put_comes_out(tmp_path: Path) -> None:
    logged: list[dict[str, Any]] = [
        {
            "_step": 0,
            "_timestamp": 1700000000.123456,
            "loss": 0.5,
            "n": 3,
            "ok": True,
            "note": "é\n",
            "none": None,
        },
        {
            "_step": 0,
            "big": 9007199254740993,
            "huge": 2**70,
            "a": {"b": 1, "c": {}},
            "a.b": 2,
            "list": [1, "x", None],
        },
        {},
        {"_step": 10**12, "loss": math.inf, "img": {"_type": "image-file", "path": "x.png"}, "": 1},
    ]
    with mirror.open(tmp_path / "m", write=True) as m:
        m.put_runs([run()])
        m.put_history(run(), logged)
    with Reader(tmp_path / "m") as reader:
        assert whole(reader) == logged
        row = (
            reader.connect()
            .execute("select history_rows, history_total, history_complete, tags, config from runs")
            .fetchone()
        )
        assert row == (4, 4, True, ["a", "b"], '{"lr":0.1}')
        assert reader.connect().execute("select path, type, num from config where path <> '' ").fetchall() == [
            ("/lr", "number", 0.1)
        ]


def test_every_table_of_the_schema_is_documented_and_has_a_view_or_is_raw(tmp_path: Path) -> None:
    Writer(tmp_path / "m").close()
    with Reader(tmp_path / "m") as reader:
        for table, found in columns().items():
            described = reader.connect().execute(f"describe raw.{table}").fetchall()
            assert [(c[0], c[1].lower()) for c in described] == [
                (name, kind.replace("timestamptz", "timestamp with time zone")) for name, kind, _ in found
            ]
    assert set(tables()) == set(columns())


def test_a_commit_that_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "m"

    def put() -> None:
        with Writer(root) as w:
            w.put_project(Project("lab", "me", "digits", storage_id="p1", run_count=1))
            w.put_run(run(), fingerprint="f")
            w.put_files(key(), [FileEntry("b.txt", 3), FileEntry("a.txt", 4, url="signed-anew")])
            w.publish(key(), "history", Fetched("history", "rows", got=0, total=0))

    put()
    before = files(root), (root / "snapshot.json").read_bytes()
    put()
    assert (files(root), (root / "snapshot.json").read_bytes()) == before


def test_a_new_tag_writes_one_row_and_keeps_the_rest(tmp_path: Path) -> None:
    root = tmp_path / "m"
    with Writer(root) as w:
        w.put_run(run())
        w.append(key(), "history", rows(10))
        w.publish(key(), "history", Fetched("history", "rows", got=10, total=10))
    before = files(root)
    with Writer(root) as w:
        w.put_run(Run(**{**run().__dict__, "tags": ("new",)}))
    assert {name.split("/")[1] for name in files(root) - before} == {"runs"}
    with Reader(root) as reader:
        db = reader.connect()
        assert db.execute("select tags, history_rows from runs").fetchall() == [(["new"], 10)]
        assert db.execute("select count(*) from history where key = 'loss'").fetchone() == (10,)
        assert db.execute("select n from metrics where key = 'loss'").fetchone() == (10,)
        assert db.execute("select count(*) from config where path = '/lr'").fetchone() == (1,)


def test_a_document_version_replaces_the_old_one_everywhere(tmp_path: Path) -> None:
    root = tmp_path / "m"
    for lr in (0.1, 0.2, 0.3):
        with Writer(root) as w:
            w.put_run(run(config=json.dumps({"lr": {"value": lr}, f"only{lr}": {"value": 1}})))
    with Reader(root) as reader:
        db = reader.connect()
        assert db.execute("select count(*) from raw.runs").fetchone() == (3,)
        assert db.execute("select config::json->>'lr' from runs").fetchall() == [("0.3",)]
        for relation in ("config", "raw.config_live"):
            found = db.execute(f"select path, num from {relation} where path <> '' order by path").fetchall()
            assert found == [("/lr", 0.3), ("/only0.3", 1.0)]


def test_incremental_appends_continue_rows_and_metrics(tmp_path: Path) -> None:
    root = tmp_path / "m"
    for part in range(3):
        with Writer(root) as w:
            w.put_run(run())
            assert w.state(key(), "history").rows == part * 10
            w.append(key(), "history", rows(10, part * 10))
            w.publish(key(), "history", Fetched("history", "rows", got=10, total=part * 10 + 10))
            state = w.state(key(), "history")
    assert (state.last_step, state.last_fingerprint) == (29, fingerprint(rows(1, 29)[0]))
    with Reader(root) as reader:
        assert whole(reader) == [json.loads(r) for r in rows(30)]
        found = reader.connect().execute(
            "select n, first_row, last_row, last_step, min_v, max_v from metrics where key = 'loss'"
        )
        assert found.fetchall() == [(30, 0, 29, 29, 1 / 30, 1.0)]


def test_a_generation_is_invisible_until_it_is_published(tmp_path: Path) -> None:
    root = tmp_path / "m"
    with Writer(root) as w:
        w.put_run(run())
        w.append(key(), "history", rows(5))
        w.publish(key(), "history", Fetched("history", "rows", got=5, total=5))
    new = [json.dumps({"_step": s, "other": s}) for s in range(7)]
    with Writer(root) as w:
        w.put_run(run())
        w.begin(key(), "history")
        w.append(key(), "history", new[:4])
        w.commit()
        with Reader(root) as reader:
            assert whole(reader) == [json.loads(r) for r in rows(5)]
            assert one(root, "select history_rows from runs") == (5,)
    with Writer(root) as w:  # interrupted there, and gone on with by another process
        w.put_run(run())
        state = w.state(key(), "history")
        assert (state.rows, state.pending) == (4, True)
        w.append(key(), "history", new[4:])
        w.publish(key(), "history", Fetched("history", "rows", got=7, total=7))
    with Reader(root) as reader:
        assert whole(reader) == [json.loads(r) for r in new]
        assert one(root, "select history_rows from runs") == (7,)
        assert reader.connect().execute("select key, n from metrics order by key").fetchall() == [
            ("_step", 7),
            ("other", 7),
        ]
        assert one(root, "select count(*) from history where key = 'loss'") == (0,)


def test_every_commit_shows_as_many_rows_as_it_says(tmp_path: Path) -> None:
    root = tmp_path / "m"
    with Writer(root, flush_bytes=20_000) as w:
        w.put_run(run())
        for start in range(0, 2000, 100):
            w.append(key(), "history", rows(100, start))
            if (root / "snapshot.json").exists():
                query = "select (select count(*) from history where key = '_step'), (select history_rows from runs), "
                held, said, complete = one(root, query + "(select history_complete from runs)") or (
                    0,
                    0,
                    False,
                )
                assert (held, complete) == (said or 0, False if said else complete)
        w.publish(key(), "history", Fetched("history", "rows", got=2000, total=2000))
    assert one(root, "select history_rows, history_complete from runs") == (2000, True)


def test_a_leases_holder_is_named(tmp_path: Path) -> None:
    with (
        Writer(tmp_path / "m") as first,
        first.lease("lab", "me", "digits"),
        Writer(tmp_path / "m") as second,
    ):
        with (
            pytest.raises(LockedError, match=rf"me/digits.*process {os.getpid()}"),
            second.lease("lab", "me", "digits"),
        ):
            pass
        with second.lease("lab", "me", "other"):
            pass
    with Writer(tmp_path / "m") as third, third.lease("lab", "me", "digits"):
        pass


def test_a_lease_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal; from mirror.store import Writer\n"
        "w = Writer(sys.argv[1]); lease = w.lease('lab', 'me', 'digits'); lease.__enter__()\n"
        "print('held', flush=True)\n"
        "signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "m")], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with Writer(tmp_path / "m") as w:
            with pytest.raises(LockedError, match=f"process {other.pid} "), w.lease("lab", "me", "digits"):
                pass
            other.kill()
            other.wait()
            with w.lease("lab", "me", "digits"):
                pass


def test_orphans_of_a_dead_writer_are_removed_and_its_last_commit_published(tmp_path: Path) -> None:
    root = tmp_path / "m"
    with Writer(root) as w:
        w.put_run(run())
    old = (root / "snapshot.json").read_bytes()
    with Writer(root) as w:
        w.put_run(run(2))
    # As if killed after the transaction and before publishing, and another one before its transaction.
    (root / "snapshot.json").write_bytes(old)
    dead = "0123456789ab"
    (root / "sessions" / f"{dead}.lock").touch()
    orphans = [root / "data" / "runs" / "0" / f"{dead}-000001.parquet{end}" for end in ("", ".tmp")]
    for orphan in orphans:
        orphan.write_bytes(b"half a file")
        orphan.chmod(0o444)
    assert one(root, "select count(*) from runs") == (1,)
    Writer(root).close()
    assert one(root, "select count(*) from runs") == (2,)
    assert not any(orphan.exists() for orphan in orphans)
    assert not list((root / "sessions").iterdir())


def test_files_of_a_writer_that_lives_are_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "m"
    with Writer(root) as w:
        w.put_run(run())
        w.commit()
        unfinished = root / "data" / "runs" / "0" / f"{w.session}-000099.parquet.tmp"
        unfinished.touch()
        Writer(root).close()
        assert unfinished.exists()


def test_two_instances_share_a_root(tmp_path: Path) -> None:
    with Writer(tmp_path / "m") as w:
        for source in ("api.wandb.ai", "wandb.lab"):
            w.put_run(Run(key(1, source=source), name=source))
    with Reader(tmp_path / "m") as reader:
        found = reader.connect().execute("select rid, source, run_id, name from runs order by rid").fetchall()
    assert [row[1:] for row in found] == [
        ("api.wandb.ai", "run1", "api.wandb.ai"),
        ("wandb.lab", "run1", "wandb.lab"),
    ]
    assert len({row[0] for row in found}) == 2


def test_a_renamed_project_keeps_its_cells(tmp_path: Path) -> None:
    root = tmp_path / "m"
    with Writer(root) as w:
        w.put_run(run())
        w.append(key(), "history", rows(3))
        w.publish(key(), "history", Fetched("history", "rows", got=3, total=3))
    before = {f for f in files(root) if f.startswith("data/history")}
    with Writer(root) as w:
        w.put_run(Run(**{**run().__dict__, "key": key(project="renamed")}))
    assert {f for f in files(root) if f.startswith("data/history")} == before
    assert one(root, "select distinct project from history") == ("renamed",)


def test_metadata_is_kept_when_a_source_did_not_fetch_it_again(tmp_path: Path) -> None:
    with Writer(tmp_path / "m") as w:
        w.put_run(run(metadata='{"program": "train.py"}'))
        w.commit()
        w.put_run(run(metadata=None, notes="edited"))
    assert one(tmp_path / "m", "select notes, metadata from runs") == ("edited", '{"program": "train.py"}')


def test_a_tombstone_hides_nothing(tmp_path: Path) -> None:
    root = tmp_path / "m"
    with Writer(root) as w:
        w.put_run(run())
        w.append(key(), "history", rows(3))
        w.publish(key(), "history", Fetched("history", "rows", got=3, total=3))
        w.commit()
        assert [w.missed(key()), w.missed(key())] == [1, 2]
        w.tombstone(key())
    assert one(root, "select count(*), count(deleted_at), max(history_rows) from runs") == (1, 1, 3)
    assert one(root, "select count(*) from history") == (9,)
    with Writer(root) as w:
        assert w.known("lab", "me", "digits")["storage-1"].deleted
        w.put_run(run())  # it was undeleted
    assert one(root, "select count(deleted_at) from runs") == (0,)


def test_quarantine_and_its_end_are_seen_by_readers(tmp_path: Path) -> None:
    root = tmp_path / "m"
    with Writer(root) as w:
        for attempts in (1, 2):
            w.quarantine(Failure(key(), "history", "HTTP 500", attempts, now()))
            w.commit()
        assert [f.attempts for f in w.quarantined("lab", "me", "digits")] == [2]
    assert one(root, "select run_id, stage, error, attempts from quarantine") == (
        "run1",
        "history",
        "HTTP 500",
        2,
    )
    with Writer(root) as w:
        w.mended(key(), "history")
        w.commit()
        assert w.quarantined("lab", "me", "digits") == []
    assert one(root, "select count(*) from quarantine") == (0,)


def test_a_sync_that_found_nothing_leaves_a_mark_but_no_file(tmp_path: Path) -> None:
    root = tmp_path / "m"
    Writer(root).close()
    before = files(root)
    with Writer(root) as w:
        w.log_sync(SyncReport("lab", "me", "digits", now(), now(), "ok", runs_listed=5))
    assert files(root) == before
    with Writer(root) as w:
        w.log_sync(SyncReport("lab", "me", "digits", now(), now(), "ok", runs_listed=5, runs_changed=1))
    assert one(root, "select runs_listed, runs_changed from sync_log") == (5, 1)


def test_what_is_dropped_by_an_error_was_never_there(tmp_path: Path) -> None:
    root = tmp_path / "m"
    with Writer(root) as w:
        w.put_run(run())
    before = files(root)
    with pytest.raises(RuntimeError), Writer(root) as w:
        w.put_run(run(2))
        w.append(key(2), "history", rows(3))
        raise RuntimeError
    assert files(root) == before
    assert one(root, "select count(*) from runs") == (1,)


def test_segments_are_read_only_and_the_root_is_private(tmp_path: Path) -> None:
    root = tmp_path / "m"
    with Writer(root) as w:
        w.put_run(run())
    assert oct(root.stat().st_mode)[-3:] == "700"
    assert {oct(p.stat().st_mode)[-3:] for p in root.rglob("*.parquet")} == {"444"}


def test_cells_are_sorted_and_encoded_as_decided(tmp_path: Path) -> None:
    with Writer(tmp_path / "m") as w:
        for n in (2, 1):
            w.put_run(run(n))
            for start in (0, 50):
                w.append(key(n), "history", rows(50, start))
            w.publish(key(n), "history", Fetched("history", "rows", got=100, total=100))
    (path,) = (tmp_path / "m" / "data" / "history").rglob("*.parquet")
    table = pq.read_table(path, columns=["key", "rid", "row"]).to_pylist()
    order = [(r["key"], r["rid"], r["row"]) for r in table]
    assert order == sorted(order) and len(order) == 600
    group = pq.ParquetFile(path).metadata.row_group(0)
    encodings = {group.column(i).path_in_schema: group.column(i).encodings for i in range(group.num_columns)}
    assert "BYTE_STREAM_SPLIT" in encodings["v"] and "DELTA_BINARY_PACKED" in encodings["row"]


def test_another_client_sees_the_same_views(tmp_path: Path) -> None:
    with Writer(tmp_path / "m") as w:
        w.put_run(run())
        w.append(key(), "history", rows(3))
    with duckdb.connect(str(tmp_path / "m" / "mirror.duckdb"), read_only=True) as db:
        assert db.execute("select run_id, count(*) from history where key = 'loss' group by 1").fetchall() == [
            ("run1", 3)
        ]


def test_a_root_can_be_moved(tmp_path: Path) -> None:
    with Writer(tmp_path / "m") as w:
        w.put_run(run())
    (tmp_path / "m").rename(tmp_path / "elsewhere")
    assert one(tmp_path / "elsewhere", "select count(*) from runs") == (1,)
    repair(tmp_path / "elsewhere")
    with duckdb.connect(str(tmp_path / "elsewhere" / "mirror.duckdb"), read_only=True) as db:
        assert db.execute("select count(*) from runs").fetchone() == (1,)


# -- what is refused ----------------------------------------------------------------------------------------


def test_a_root_that_is_no_mirror_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"does not exist.*mirror sync"):
        Reader(tmp_path / "none")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(StoreError, match="not a mirror"):
        Reader(tmp_path / "other")
    with pytest.raises(StoreError, match="other files"):
        Writer(tmp_path / "other")
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is a file"):
        Writer(tmp_path / "file")


def test_a_newer_schema_is_refused_by_readers_and_writers(tmp_path: Path) -> None:
    root = tmp_path / "m"
    with Writer(root) as w:
        w.put_run(run())
    content = json.loads((root / "snapshot.json").read_text())
    (root / "snapshot.json").write_text(json.dumps({**content, "schema_version": 99}))
    with sqlite3.connect(root / "catalog.sqlite") as db:
        db.execute("update meta set value = '99' where key = 'schema_version'")
    for opens in (Reader, Writer, peek, repair):
        with pytest.raises(StoreError, match=r"newer release .*`99`.*pip install -U"):
            opens(root)


def test_an_older_store_is_upgraded_and_its_files_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mechanism, with an upgrade made up for this test: a column more in the catalog and in a table."""
    root = tmp_path / "m"
    with Writer(root) as w:
        w.put_run(run())
    steps = tmp_path / "upgrades"
    steps.mkdir()
    (steps / "4.sql").write_text("-- a note; with a semicolon\nalter table runs add column extra text;\n")
    for module in ("catalog", "layout", "schema", "snapshot", "segments"):
        monkeypatch.setattr(f"mirror.store.{module}.SCHEMA_VERSION", 4)
    monkeypatch.setitem(COLUMNS_SINCE, "runs", 4)
    wider = {**columns(), "runs": [*columns()["runs"], ("extra", "varchar", True)]}
    monkeypatch.setattr("mirror.store.views.columns", lambda: wider)
    script = (Path(__file__).parents[1] / "schema" / "tables.sql").read_text()
    monkeypatch.setattr(
        "mirror.store.views.ddl",
        lambda: script.replace("  deleted_at        timestamptz ", "  deleted_at timestamptz, extra varchar ", 1),
    )
    from mirror.store.layout import Layout

    catalog = Catalog(Layout(root), upgrades=steps)
    assert catalog.get("schema_version") == "4"
    catalog.db.execute("select extra from runs")
    catalog.close()
    assert one(root, "select run_id, extra from runs") == ("run1", None)


def test_a_full_disk_loses_nothing_and_says_so(tmp_path: Path) -> None:
    """A real limit: the kernel refuses to let any file of the process grow beyond 200 kB."""
    root = tmp_path / "m"
    with Writer(root) as w:
        w.put_run(run())
    before = files(root)
    code = (
        "import sys, json, resource, signal, random\n"
        "from mirror.store import Writer; from mirror.errors import StoreError\n"
        "sys.path.insert(0, sys.argv[2]); from test_store import run, key\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try:\n"
        "    with Writer(sys.argv[1]) as w:\n"
        "        w.put_run(run(2))\n"
        "        w.append(key(2), 'history', [json.dumps({'x': random.random()}) for _ in range(100_000)])\n"
        "except StoreError as e:\n"
        "    print(e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(root), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "the disk is full while writing `data/history/" in done.stdout, done.stderr
    assert "free some space" in done.stdout
    assert files(root) == before
    with Writer(root) as w:
        w.put_run(run(2))
    assert one(root, "select count(*) from runs") == (2,)


def test_a_mirror_open_for_reading_refuses_to_write(tmp_path: Path) -> None:
    Writer(tmp_path / "m").close()
    with mirror.open(tmp_path / "m") as m, pytest.raises(UsageError, match="write=True"):
        m.put_runs([run()])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_reader_with_another_user_id_and_no_write_permission() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "m"
        with Writer(root) as w:
            w.put_run(run())
        for path in (Path(folder), root):
            path.chmod(0o755)
        code = (
            "import sys, os, duckdb, pyarrow, json\n"
            "from mirror.store import Reader; from mirror.store.catalog import peek\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "print(Reader(sys.argv[1]).connect().execute('select run_id from runs').fetchall())\n"
            "print(len(peek(sys.argv[1]).known('lab', 'me', 'digits')))\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[('run1',)]", "1"], done.stderr


# -- repair -------------------------------------------------------------------------------------------------


def _filled(root: Path) -> list[dict[str, Any]]:
    with Writer(root) as w:
        w.put_project(Project("lab", "me", "digits"))
        for n in (1, 2, 3):
            w.put_run(run(n), fingerprint=f"f{n}")
            w.append(key(n), "history", rows(5 * n))
            w.append(key(n), "system", [json.dumps({"_timestamp": 1.7e9, "system.cpu": n})])
            for stream in ("history", "system"):
                w.publish(key(n), stream, Fetched(stream, "rows", got=5 * n, total=5 * n))  # type: ignore[arg-type]
            w.put_files(key(n), [FileEntry("output.log", n)])
    with Writer(root) as w:
        w.put_run(run(2, notes="edited"))
        w.begin(key(3), "history")
        w.append(key(3), "history", rows(2))
    return _content(root)


def _content(root: Path) -> list[dict[str, Any]]:
    with Reader(root) as reader:
        queries = (
            "select * from runs order by rid",
            "select * from history order by rid, row, key",
            "select * from system_metrics order by rid, row, key",
            "select * from config order by rid, path",
            "select * from metrics order by rid, key",
            "select * from files order by rid",
            "select * from projects",
        )
        return [reader.connect().sql(q).to_arrow_table().to_pydict() for q in queries]


@pytest.mark.parametrize(
    "lost", [["catalog.sqlite"], ["snapshot.json"], ["catalog.sqlite", "snapshot.json"], ["mirror.duckdb"]]
)
def test_repair_rebuilds_what_is_lost(tmp_path: Path, lost: list[str]) -> None:
    root = tmp_path / "m"
    content = _filled(root)
    with Writer(root) as w:
        state = w.state(key(1), "history")
    for name in lost:
        (root / name).unlink()
    report = repair(root)
    assert report.rebuilt_catalog == ("catalog.sqlite" in lost) and not report.lost
    assert _content(root) == content
    with Writer(root) as w:
        again = w.state(key(1), "history")
        assert (again.rows, again.last_step, again.last_fingerprint) == (
            state.rows,
            state.last_step,
            state.last_fingerprint,
        )
        assert w.put_run(run(4)) > max(content[0]["rid"])


def test_repair_replaces_a_damaged_catalog(tmp_path: Path) -> None:
    root = tmp_path / "m"
    content = _filled(root)
    (root / "catalog.sqlite").write_bytes(b"not a database at all" * 1000)
    with pytest.raises(StoreError, match=r"damaged.*mirror repair"):
        Writer(root)
    assert repair(root).rebuilt_catalog
    assert _content(root) == content
    assert (root / "catalog.sqlite.damaged").exists()


def test_repair_marks_runs_that_lost_rows(tmp_path: Path) -> None:
    root = tmp_path / "m"
    _filled(root)
    lost = max((root / "data" / "history").rglob("*.parquet"), key=lambda path: path.stat().st_size)
    lost.unlink()
    report = repair(root)
    assert report.lost == [str(lost.relative_to(root))]
    assert report.runs == ["me/digits/run1", "me/digits/run2", "me/digits/run3"]
    with Reader(root) as reader:
        found = reader.connect().execute("select distinct history_complete, history_note from runs").fetchall()
    assert found == [(False, "rows were lost with a damaged file; the next sync fetches them again")]
    with Writer(root) as w:
        assert w.known("lab", "me", "digits")["storage-1"].fingerprint is None


def test_rows_that_were_started_over_within_one_commit_are_gone(tmp_path: Path) -> None:
    """A history that came on one road and, since it did not add up, anew on another."""
    root = tmp_path / "m"
    with Writer(root) as w:
        w.put_run(run())
        w.append(key(), "history", rows(2))
        w.begin(key(), "history")
        w.append(key(), "history", rows(5))
        w.publish(key(), "history", Fetched("history", "rows", got=5, total=5))
    with Reader(root) as reader:
        for table in ("raw.history_live", "history"):
            held = reader.connect().execute(f"select count(*) from {table} where key = '_step'").fetchone()
            assert held == (5,), table


def test_repair_starts_a_half_fetched_generation_over(tmp_path: Path) -> None:
    root = tmp_path / "m"
    content = _filled(root)
    min((root / "data" / "history").rglob("*.parquet"), key=lambda path: path.stat().st_size).unlink()
    assert repair(root).runs == []
    assert _content(root) == content
    with Writer(root) as w:
        state = w.state(key(3), "history")
        assert (state.rows, state.pending) == (0, True)


@pytest.mark.parametrize("table", ["runs", "config", "summary", "metric", "files"])
def test_a_sync_after_repair_brings_back_lost_documents(tmp_path: Path, table: str) -> None:
    root = tmp_path / "m"
    with Writer(root) as w:
        w.put_run(run(), fingerprint="f")
        w.append(key(), "history", rows(5))
        w.publish(key(), "history", Fetched("history", "rows", got=5, total=5))
        w.put_files(key(), [FileEntry("output.log", 1)])
    content = [{k: v for k, v in t.items() if k != "mirrored_at"} for t in _content(root)]
    for path in (root / "data" / table).rglob("*.parquet"):
        path.unlink()
    assert repair(root).runs == ([] if table == "metric" else ["me/digits/run1"])
    with Writer(root) as w:
        w.put_run(run())
        w.put_files(key(), [FileEntry("output.log", 1)])
    assert [{k: v for k, v in t.items() if k != "mirrored_at"} for t in _content(root)] == content


def test_repair_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StoreError, match="not a mirror"):
        repair(tmp_path)


# -- the live tail ------------------------------------------------------------------------------------------


def test_live_lines_are_seen_before_and_after_they_are_drained(tmp_path: Path) -> None:
    root = tmp_path / "m"
    with Writer(root) as w:
        rid = w.put_run(run(state_of := 1))
        w.append(key(), "history", rows(3))
        w.publish(key(), "history", Fetched("history", "serve", got=3, total=3))
        w.commit()
        assert state_of == 1
        spool = Spool(root)
        spool.open(rid, Run(**{**run().__dict__, "state": "running"}), drained={"history": 3, "system": 0})
        lines = [r.encode() for r in rows(10)]
        assert spool.append(rid, "history", 3, lines[3:7]) == 7
        assert spool.append(rid, "history", 3, lines[3:9]) == 9  # sent again, with more
        spool.append(rid, "system", 0, [b'{"system.cpu": 1}'])
        spool.rewrite_logs(rid, 0, [b"epoch 1", b"10 %"])
        spool.rewrite_logs(rid, 1, [b"20 %"])

        def check(n: int) -> None:
            with Reader(root) as reader:
                assert whole(reader, rid) == [json.loads(r) for r in rows(n)]
                db = reader.connect()
                assert db.execute("select state, history_rows, system_rows, logs_rows from runs").fetchall() == [
                    ("running", n, 1, 2)
                ]
                assert db.execute("select n from metrics where key = 'loss'").fetchall() == [(n,)]
                assert db.execute("select text from logs order by line").fetchall() == [
                    ("epoch 1",),
                    ("20 %",),
                ]

        check(9)
        again = Spool(root)  # another process, after a crash
        again.set_drained(rid, {"history": 3, "system": 0})
        assert again.append(rid, "history", 8, lines[8:10]) == 10
        check(10)

        def drained(final: bool) -> Callable[[], None]:
            sealed = again.seal(rid)
            again.put_rows(w, rid, sealed)
            return again.drain(w, rid, sealed, final=final)

        done = drained(final=False)
        check(10)
        w.commit()
        check(10)
        done()
        check(10)
        again.append(rid, "history", 10, [rows(1, 10)[0].encode()])
        check(11)
        w.after_commit(drained(final=True))
        again.append(rid, "history", 11, [rows(1, 11)[0].encode()])  # it comes while the others are written
        w.commit()
        check(12)
        assert again.runs().keys() == {rid}
        w.after_commit(drained(final=True))
        w.commit()
        check(12)
        assert again.runs() == {} and not any((root / "live").iterdir())


def test_a_torn_line_was_never_acknowledged(tmp_path: Path) -> None:
    root = tmp_path / "m"
    with Writer(root) as w:
        rid = w.put_run(run())
        w.commit()
        spool = Spool(root)
        spool.open(rid, run())
        spool.append(rid, "history", 0, [r.encode() for r in rows(2)])
        spool.close()
        (path,) = (root / "live" / str(rid)).glob("history-*")
        with path.open("ab") as f:
            f.write(b'{"_step": 2, "lo')
        with Reader(root) as reader:
            assert len(whole(reader, rid)) == 2
        again = Spool(root)
        assert again.append(rid, "history", 2, [rows(1, 2)[0].encode()]) == 3
        with Reader(root) as reader:
            assert whole(reader, rid) == [json.loads(r) for r in rows(3)]


# -- compaction ---------------------------------------------------------------------------------------------


def test_many_small_commits_leave_few_files_and_the_same_content(tmp_path: Path) -> None:
    many, one_go = tmp_path / "many", tmp_path / "once"

    def put(w: Writer, n: int, part: int) -> None:
        w.put_run(run(n, notes=f"note {part}"))
        w.append(key(n), "history", rows(20, 20 * part))
        w.publish(key(n), "history", Fetched("history", "rows", got=20, total=20 * part + 20))

    for part in range(40):
        with session(many) as w:
            put(w, part % 3 + 1, part // 3)
    with Writer(one_go) as w:
        for n in (1, 2, 3):
            for part in range(14 if n == 1 else 13):
                put(w, n, part)
    for query in (
        "select run_id, notes, history_rows from runs",
        "select run_id, key, row, step, value from history",
        "select run_id, path, num from config",
        "select run_id, key, n, first_row, last_row, last_v from metrics",
    ):
        answers = []
        for root in (many, one_go):
            with Reader(root) as reader:
                answers.append(sorted(reader.connect().execute(query).fetchall()))
        assert answers[0] == answers[1]
    with Reader(many) as reader:
        count = {table: len(reader.snapshot.files(table)) for table in ("runs", "metric", "history")}
        assert all(n < 20 for n in count.values()), count
        table = pq.read_table(max(reader.layout.root / f["path"] for f in reader.snapshot.files("history")))
        order = [(r["key"], r["rid"], r["row"]) for r in table.select(["key", "rid", "row"]).to_pylist()]
        assert order == sorted(order)


def test_compaction_drops_dead_versions_and_keeps_what_is_being_fetched(tmp_path: Path) -> None:
    root = tmp_path / "m"
    new = [json.dumps({"_step": s, "other": s}) for s in range(6)]
    with Writer(root) as w:
        for generation in range(12):
            w.put_run(run(notes=str(generation)))
            w.begin(key(), "history")
            w.append(key(), "history", rows(5))
            w.publish(key(), "history", Fetched("history", "rows", got=5, total=5))
            w.commit()
        w.begin(key(), "history")
        for part in range(3):
            w.append(key(), "history", new[part : part + 1])
            w.commit()
        for extra in range(12):
            w.put_run(run(100 + extra))
            w.append(key(100 + extra), "history", rows(1))
            w.publish(key(100 + extra), "history", Fetched("history", "rows", got=1, total=1))
            w.commit()
    with Reader(root) as reader:
        assert reader.connect().execute("select count(*) from raw.runs where rid = 1").fetchone()[0] < 6
        assert whole(reader) == [json.loads(r) for r in rows(5)]
    with Writer(root) as w:
        assert (w.state(key(), "history").rows, w.state(key(), "history").pending) == (3, True)
        w.append(key(), "history", new[3:])
        w.publish(key(), "history", Fetched("history", "rows", got=6, total=6))
    with Reader(root) as reader:
        assert whole(reader) == [json.loads(r) for r in new]


def test_a_reader_of_an_old_snapshot_outlives_compaction(tmp_path: Path) -> None:
    root = tmp_path / "m"
    with Writer(root) as w:
        w.put_run(run())
    with Reader(root) as old:
        for n in range(2, 30):
            with session(root) as w:
                w.put_run(run(n))
        assert old.connect().execute("select run_id from runs").fetchall() == [("run1",)]
        assert old.refresh()
        assert old.connect().execute("select count(*) from runs").fetchone() == (29,)


def commits(w: Writer) -> int:
    return int(w.catalog.db.execute("select count(*) from snapshots").fetchone()[0])


def test_what_was_replaced_goes_away_after_the_grace_period(tmp_path: Path) -> None:
    root = tmp_path / "m"
    for n in range(1, 30):
        with session(root) as w:
            w.put_run(run(n))

    def extra() -> set[str]:
        with Reader(root) as reader:
            return {str(p) for p in (root / "data").rglob("*.parquet")} - set(reader.files)

    assert extra()
    with Writer(root) as w:
        made = commits(w)
        assert vacuum(w.layout, w.catalog) == 0 and commits(w) == made
        last = w.catalog.last_snapshot()
        assert vacuum(w.layout, w.catalog, grace=timedelta(0)) > 0
        assert w.catalog.last_snapshot() == last and commits(w) == 1 < made
    assert not extra()
    assert one(root, "select count(*) from runs") == (29,)
    (root / "catalog.sqlite").unlink()
    (root / "snapshot.json").unlink()
    repair(root)
    assert one(root, "select count(*) from runs") == (29,)


def test_repair_without_a_snapshot_leaves_out_what_was_replaced(tmp_path: Path) -> None:
    root = tmp_path / "m"
    for n in range(1, 30):
        with session(root) as w:
            w.put_run(run(n))
            w.append(key(n), "history", rows(n))
            w.publish(key(n), "history", Fetched("history", "rows", got=n, total=n))
    content = _content(root)
    (root / "catalog.sqlite").unlink()
    (root / "snapshot.json").unlink()
    repair(root)
    assert _content(root) == content
