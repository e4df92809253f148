"""The catalog: a small SQLite file in which every commit is one transaction. Only writers open it.

It uses a rollback journal, not a write-ahead log: a commit touches a few pages, one process commits at a
time anyway, and the file stays readable without write permission and on network file systems.
"""

from __future__ import annotations

import json
import re
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mirror.errors import StoreError
from mirror.records import Failure, Fetched, ItemKey, RunKey, Stream
from mirror.resources import folder, text
from mirror.store.disk import explained
from mirror.store.layout import Layout, check_version
from mirror.store.schema import SCHEMA_VERSION, STREAM_TABLE


@dataclass(frozen=True)
class StreamState:
    """The generation of a stream that appends go to. `pending` is true while it is not yet the visible one."""

    gen: int = 0
    rows: int = 0
    last_step: int | None = None
    last_fingerprint: str | None = None
    pending: bool = False
    fetched: Fetched | None = None


@dataclass(frozen=True)
class Known:
    """What the catalog knows of a run; `history`, `system` and `logs` are the generations that appends go to,
    `elsewhere` the streams that another source gave."""

    rid: int
    key: RunKey
    fingerprint: str | None
    checked_at: datetime | None
    missing: int
    deleted: bool
    history: StreamState
    system: StreamState
    logs: StreamState = StreamState()
    elsewhere: frozenset[str] = frozenset()

    @property
    def run_id(self) -> str:
        return self.key.run_id


@dataclass
class Identity:
    """A run's row in the catalog."""

    rid: int
    key: RunKey
    gen: int = 0
    config_gen: int = 0
    summary_gen: int = 0
    metric_gen: int = 0
    digest: str = ""
    fingerprint: str | None = None
    checked_at: str | None = None
    missing: int = 0
    deleted_at: str | None = None
    origin: str | None = None
    merged_into: int | None = None
    judged: str | None = None


@dataclass
class ItemIdentity:
    """The catalog's row of a sweep, a collection, an artifact or a report; `kind` is its table."""

    rid: int
    kind: str
    key: ItemKey
    gen: int = 0
    digest: str = ""
    entries_gen: int = 0
    entries_digest: str = ""
    uses_gen: int = 0
    uses_digest: str = ""
    missing: int = 0
    deleted_at: str | None = None


@dataclass(frozen=True)
class FileRow:
    """A segment, as catalog and snapshot list it."""

    path: str
    table: str
    rows: int
    bytes: int
    sha256: str
    rids: list[list[int]]
    version: int


def peek(root: str | Path) -> Catalog | None:
    """The catalog of an existing mirror, for looking only; None if there is no mirror yet."""
    layout = Layout(root)
    return Catalog(layout, read_only=True) if layout.catalog.exists() else None


def now() -> datetime:
    """The one clock: the current time in UTC."""
    return datetime.now(timezone.utc)


def iso(at: datetime | None) -> str | None:
    return at.astimezone(timezone.utc).isoformat() if at else None


def from_iso(value: str | None) -> datetime | None:
    return datetime.fromisoformat(value) if value else None


def fetched_json(fetched: Fetched | None) -> str | None:
    return json.dumps(fetched.__dict__) if fetched else None


class Catalog:
    """One connection. Methods outside `transaction` only read; `read_only` neither creates nor upgrades."""

    def __init__(self, layout: Layout, *, read_only: bool = False, upgrades: Path | None = None) -> None:
        self.layout = layout
        if read_only:
            with self._sqlite():
                uri = f"{layout.catalog.as_uri()}?mode=ro"
                self.db = sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None, check_same_thread=False)
                check_version(self._version() or 0, layout.root)
            return
        with explained("opening the catalog"), self._sqlite():
            self.db = sqlite3.connect(layout.catalog, timeout=60, isolation_level=None, check_same_thread=False)
            self.db.execute("pragma synchronous = full")
            self._create_or_upgrade(upgrades or folder("schema") / "upgrades")

    def close(self) -> None:
        self.db.close()

    @contextmanager
    def _sqlite(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as e:
            message, file = str(e), f"`{self.layout.catalog}`"
            known = {
                "full": "the disk is full while writing the catalog: nothing committed was lost; free some space and "
                "run the command again",
                "disk I/O": f"the disk refused to write {file}: nothing committed was lost; see that it has room and "
                "is sound, and run the command again",
                "readonly|unable to open": f"no permission to write {file}: write as the owner of the mirror, or "
                "choose another --mirror",
                "locked": f"{file} is locked by another program: close it and try again",
            }
            for reason, told in known.items():
                if re.search(reason, message):
                    raise StoreError(told) from e
            raise StoreError(f"{file} is damaged ({message}): run `mirror repair --mirror {self.layout.root}`") from e

    def _create_or_upgrade(self, upgrades: Path) -> None:
        self.db.execute("begin immediate")
        try:
            version = self._version()
            if version is None:
                for statement in _statements(text("schema", "catalog.sql")):
                    self.db.execute(statement)
                self.put("schema_version", str(SCHEMA_VERSION))
                self.put("store_id", uuid.uuid4().hex)
                self.put("next_rid", "1")
            else:
                check_version(version, self.layout.root)
                for step in range(version + 1, SCHEMA_VERSION + 1):
                    for statement in _statements((upgrades / f"{step}.sql").read_text(encoding="utf-8")):
                        self.db.execute(statement)
                    self.put("schema_version", str(step))
        except BaseException:
            self.db.execute("rollback")
            raise
        self.db.execute("commit")

    def _version(self) -> int | None:
        if not self.db.execute("select 1 from sqlite_master where name = 'meta'").fetchone():
            return None
        return int(self.get("schema_version"))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing, durable when the block ends."""
        with self._sqlite():
            self.db.execute("begin immediate")
            try:
                yield
                self.db.execute("commit")
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("rollback")
                raise

    # -- meta ---------------------------------------------------------------------------------------------

    def get(self, key: str) -> str:
        return str(self.db.execute("select value from meta where key = ?", [key]).fetchone()[0])

    def put(self, key: str, value: str) -> None:
        self.db.execute("insert or replace into meta values (?, ?)", [key, value])

    def reserve_rids(self, count: int) -> range:
        """Numbers nobody else will get; those that are not used are lost, which is fine."""
        with self.transaction():
            first = int(self.get("next_rid"))
            self.put("next_rid", str(first + count))
        return range(first, first + count)

    # -- runs ---------------------------------------------------------------------------------------------

    _IDENTITY = (
        "rid, source, storage_id, entity, project, run_id, gen, config_gen, summary_gen, metric_gen, digest, "
        "fingerprint, checked_at, missing, deleted_at, origin, merged_into, judged"
    )

    def _identity(self, row: Sequence[Any]) -> Identity:
        rid, source, storage_id, entity, project, run_id, *rest = row
        return Identity(rid, RunKey(source, storage_id, entity, project, run_id), *rest)

    def find(self, source: str, storage_id: str) -> Identity | None:
        row = self.db.execute(
            f"select {self._IDENTITY} from runs where source = ? and storage_id = ?", [source, storage_id]
        ).fetchone()
        return self._identity(row) if row else None

    def project_runs(self, source: str, entity: str, project: str) -> list[Identity]:
        query = f"select {self._IDENTITY} from runs where source = ? and entity = ? and project = ?"
        return [self._identity(r) for r in self.db.execute(query, [source, entity, project])]

    def identities(self, rids: Sequence[int]) -> list[Identity]:
        query = f"select {self._IDENTITY} from runs where rid in (select value from json_each(?))"
        return [self._identity(r) for r in self.db.execute(query, [json.dumps(rids)])]

    def known(self, source: str, entity: str, project: str) -> dict[str, Known]:
        """Every run held of a project, by storage id: what a plan is made from."""
        identities = self.project_runs(source, entity, project)
        states = self.streams(i.rid for i in identities)

        def state(rid: int, stream: str) -> StreamState:
            found = states.get((rid, stream), {})
            return found[not ahead(found)] if found else StreamState()

        return {
            i.key.storage_id: Known(
                rid=i.rid,
                key=i.key,
                fingerprint=i.fingerprint,
                checked_at=from_iso(i.checked_at),
                missing=i.missing,
                deleted=i.deleted_at is not None,
                history=state(i.rid, "history"),
                system=state(i.rid, "system"),
                logs=state(i.rid, "logs"),
                elsewhere=frozenset(json.loads(i.origin or "{}")),
            )
            for i in identities
        }

    def save_run(self, i: Identity) -> None:
        row = [i.rid, *i.key.__dict__.values(), *list(i.__dict__.values())[2:]]
        self.db.execute(f"insert or replace into runs ({self._IDENTITY}) values ({','.join('?' * len(row))})", row)

    def live_gen(self, rid: int) -> int:
        row = self.db.execute("select gen from runs where rid = ?", [rid]).fetchone()
        return int(row[0]) if row else 0

    # -- items --------------------------------------------------------------------------------------------

    _ITEM = (
        "rid, kind, source, storage_id, entity, project, gen, digest, entries_gen, entries_digest, uses_gen, "
        "uses_digest, missing, deleted_at"
    )

    def _item(self, row: Sequence[Any]) -> ItemIdentity:
        rid, kind, source, storage_id, entity, project, *rest = row
        return ItemIdentity(rid, kind, ItemKey(source, storage_id, entity, project), *rest)

    def find_item(self, kind: str, source: str, storage_id: str) -> ItemIdentity | None:
        query = f"select {self._ITEM} from items where kind = ? and source = ? and storage_id = ?"
        row = self.db.execute(query, [kind, source, storage_id]).fetchone()
        return self._item(row) if row else None

    def project_items(self, kind: str, source: str, entity: str, project: str) -> list[ItemIdentity]:
        query = f"select {self._ITEM} from items where kind = ? and source = ? and entity = ? and project = ?"
        return [self._item(row) for row in self.db.execute(query, [kind, source, entity, project])]

    def save_item(self, i: ItemIdentity) -> None:
        held = self.db.execute("select gen from items where rid = ?", [i.rid]).fetchone()
        if held and held[0] > i.gen:
            raise StoreError(
                f"`{i.key.storage_id}` of `{i.key.entity}/{i.key.project}` was changed by another writer meanwhile: "
                "run the command again"
            )
        k = i.key
        self.db.execute(
            f"insert or replace into items ({self._ITEM}) values (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            [
                i.rid, i.kind, k.source, k.storage_id, k.entity, k.project, i.gen, i.digest, i.entries_gen,
                i.entries_digest, i.uses_gen, i.uses_digest, i.missing, i.deleted_at,
            ],
        )  # fmt: skip

    def doubt_items(self, rids: Iterable[int]) -> None:
        """Treat these items as unknown, so that they are written whatever they are when they are put again."""
        self.db.executemany(
            "update items set digest = '', entries_digest = '', uses_digest = '' where rid = ?", [[rid] for rid in rids]
        )

    # -- streams ------------------------------------------------------------------------------------------

    def streams(self, rids: Iterable[int]) -> dict[tuple[int, str], dict[bool, StreamState]]:
        """(rid, stream) -> {True: the live generation, False: the newest one that is not live}."""
        found: dict[tuple[int, str], dict[bool, StreamState]] = {}
        rids = list(rids)
        for start in range(0, len(rids), 500):
            part = rids[start : start + 500]
            marks = ",".join("?" * len(part))
            for rid, stream, gen, live, rows, last_step, fingerprint, fetched in self.db.execute(
                "select rid, stream, gen, live, rows, last_step, last_fingerprint, fetched from streams "
                f"where rid in ({marks}) order by gen",
                part,
            ):
                state = StreamState(
                    gen,
                    rows,
                    last_step,
                    fingerprint,
                    not live,
                    Fetched(**json.loads(fetched)) if fetched else None,
                )
                found.setdefault((rid, stream), {})[bool(live)] = state
        return found

    def save_stream(self, rid: int, stream: str, state: StreamState) -> None:
        if not state.pending:
            self.db.execute(
                "update streams set live = 0 where rid = ? and stream = ? and gen <> ?",
                [rid, stream, state.gen],
            )
        self.db.execute(
            "insert or replace into streams values (?,?,?,?,?,?,?,?)",
            [
                rid, stream, state.gen, int(not state.pending), state.rows, state.last_step, state.last_fingerprint,
                fetched_json(state.fetched),
            ],
        )  # fmt: skip

    def newest_gen(self, rid: int, stream: Stream | str) -> int:
        query = "select max(gen) from streams where rid = ? and stream = ?"
        return int(self.db.execute(query, [rid, stream]).fetchone()[0] or 0)

    # -- files and snapshots ------------------------------------------------------------------------------

    def new_snapshot(self, at: datetime, session: str) -> int:
        cursor = self.db.execute("insert into snapshots (at, by) values (?, ?)", [iso(at), session])
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def add_file(self, file: FileRow, snapshot: int) -> None:
        self.db.execute(
            "insert into files values (?,?,?,?,?,?,?,?,null)",
            [
                file.path, file.table, file.rows, file.bytes, file.sha256, json.dumps(file.rids), file.version,
                snapshot,
            ],
        )  # fmt: skip

    def files(self) -> list[FileRow]:
        query = (
            "select path, tbl, rows, bytes, sha256, rids, version from files where removed is null order by added, path"
        )
        return [FileRow(p, t, r, b, s, json.loads(ids), v) for p, t, r, b, s, ids, v in self.db.execute(query)]

    def remove_files(self, paths: Sequence[str], snapshot: int) -> None:
        self.db.executemany("update files set removed = ? where path = ?", [[snapshot, path] for path in paths])

    def versions(self, rids: Sequence[int], column: str, of: str = "runs") -> Iterator[tuple[int, int]]:
        """(rid, live version) of these runs, or items if `of` says so; `column` is gen, config_gen, ..."""
        for start in range(0, len(rids), 500):
            part = rids[start : start + 500]
            marks = ",".join("?" * len(part))
            yield from self.db.execute(f"select rid, {column} from {of} where rid in ({marks})", list(part))

    def superseded_rows(self, table: str) -> int:
        row = self.db.execute("select rows from superseded where tbl = ?", [table]).fetchone()
        return int(row[0]) if row else 0

    def supersede(self, table: str, rows: int) -> None:
        self.db.execute(
            "insert into superseded values (?, ?) on conflict (tbl) do update set rows = rows + excluded.rows",
            [table, rows],
        )

    def superseded(self) -> set[str]:
        """Tables in which readers must look for the live rows."""
        found = {t for (t,) in self.db.execute("select tbl from superseded where rows > 0")}
        dead = self.db.execute("select distinct stream from streams where live = 0 and rows > 0")
        found |= {STREAM_TABLE[stream] for (stream,) in dead}
        if self.db.execute("select 1 from runs where merged_into is not null").fetchone():
            found |= {"runs", "config", "summary", "metric", *STREAM_TABLE.values()}
        return found

    def last_snapshot(self) -> tuple[int, str]:
        row = self.db.execute("select id, at from snapshots order by id desc limit 1").fetchone()
        return (row[0], row[1]) if row else (0, "")

    # -- projects and quarantine --------------------------------------------------------------------------

    def project(self, source: str, entity: str, name: str) -> tuple[int, str]:
        row = self.db.execute(
            "select gen, digest from projects where source = ? and entity = ? and project = ?",
            [source, entity, name],
        ).fetchone()
        return (row[0], row[1]) if row else (0, "")

    def save_project(self, source: str, entity: str, name: str, gen: int, digest: str) -> None:
        self.db.execute(
            "insert into projects (source, entity, project, gen, digest) values (?,?,?,?,?) "
            "on conflict (source, entity, project) do update set gen = excluded.gen, digest = excluded.digest",
            [source, entity, name, gen, digest],
        )

    def checked_project(
        self, source: str, entity: str, name: str, at: datetime, outcome: str, message: str | None
    ) -> None:
        self.db.execute(
            "insert into projects (source, entity, project, gen, digest, checked_at, outcome, message) "
            "values (?,?,?,0,'',?,?,?) on conflict (source, entity, project) do update set "
            "checked_at = excluded.checked_at, outcome = excluded.outcome, message = excluded.message",
            [source, entity, name, iso(at), outcome, message],
        )

    def quarantined(self, source: str, entity: str, project: str) -> list[Failure]:
        query = (
            "select storage_id, run_id, stage, error, attempts, next_try from quarantine "
            "where source = ? and entity = ? and project = ?"
        )
        return [
            Failure(
                RunKey(source, storage_id, entity, project, run_id),
                stage,
                error,
                attempts,
                datetime.fromisoformat(next_try),
            )
            for storage_id, run_id, stage, error, attempts, next_try in self.db.execute(
                query, [source, entity, project]
            )
        ]

    def failing(self, key: RunKey, stage: str) -> bool:
        query = "select 1 from quarantine where source = ? and storage_id = ? and stage = ?"
        return self.db.execute(query, [key.source, key.storage_id, stage]).fetchone() is not None

    def save_failure(self, f: Failure) -> None:
        k = f.key
        self.db.execute(
            "insert or replace into quarantine values (?,?,?,?,?,?,?,?,?)",
            [
                k.source, k.storage_id, k.entity, k.project, k.run_id, f.stage, f.error, f.attempts,
                iso(f.next_try),
            ],
        )  # fmt: skip

    def forget_failure(self, key: RunKey, stage: str) -> None:
        self.db.execute(
            "delete from quarantine where source = ? and storage_id = ? and stage = ?",
            [key.source, key.storage_id, stage],
        )


def ahead(states: dict[bool, StreamState]) -> bool:
    """Whether the newest generation is one that is still being fetched, not one that was replaced."""
    return False in states and (True not in states or states[False].gen > states[True].gen)


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, without its comments (sqlite3.executescript would commit on the way)."""
    for statement in "\n".join(line.split("--")[0] for line in script.splitlines()).split(";"):
        if statement.strip():
            yield statement
