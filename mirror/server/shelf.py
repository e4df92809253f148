"""What is in segments: runs looked up by name or id, their documents, and listings by filter and order.

A `Shelf` is one published snapshot and never changes; after a commit the next request gets a new one (`Shelves`).
Runs that are still logging are not on it: their latest documents come from the spool, and are laid over the stored
ones when a filter has to see both.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirror.records import Project, Run, Stream
from mirror.server.index import Index, Place
from mirror.store import Layout, Reader
from mirror.store.catalog import Identity, StreamState, now
from mirror.store.schema import STREAM_TABLE, ddl, tables
from mirror.store.snapshot import Snapshot
from mirror.store.versions import Version, document_tables, run_of
from mirror.store.views import parquet

if TYPE_CHECKING:
    import duckdb

HEAVY = ("config_raw", "summary_raw", "system_summary", "history_keys", "metadata")
"""Documents that listings leave out unless they are asked for."""

_HELD_BYTES = 64 << 20
_CONNECTING = threading.Lock()


@dataclass(frozen=True)
class Stored:
    """A run's row in `runs`. The columns of `HEAVY` are None unless it was read `whole`."""

    place: Place
    run: Run
    whole: bool


class Shelf:
    """One snapshot. `db` is a database without tables of its own, shared by all shelves of a server."""

    def __init__(self, layout: Layout, db: duckdb.DuckDBPyConnection, before: Shelf | None) -> None:
        self.layout = layout
        self.snapshot = Snapshot(layout.read_snapshot())
        self.index: Index = (before.index if before else Index()).advanced(layout, self.snapshot)
        self._db = db
        self._lock = threading.Lock()
        self._documents: _Documents = before._documents if before else _Documents()
        self._reader: Reader | None = None
        self._overlay: tuple[int, Reader] | None = None
        self._projects: list[Project] | None = None
        self._by_creation: dict[tuple[str, str], list[tuple[int, int]]] = {}

    @property
    def number(self) -> int:
        return self.snapshot.id

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A connection for `relation`s."""
        with _CONNECTING:
            return self._db.cursor()

    def relation(self, table: str, rids: Iterable[int]) -> str:
        """SQL of a FROM item with the rows of these runs, of all their versions, from the files that hold them."""
        wanted = sorted(set(rids))
        held = [f for f in self.snapshot.files(table) if _overlap(f["rids"], wanted)]
        if not held:
            return f"(select * from shape.{table})"
        paths = [str(self.layout.root / f["path"]) for f in held]
        chosen = f"rid = {wanted[0]}" if len(wanted) == 1 else f"rid in ({', '.join(map(str, wanted))})"
        return f"({parquet(table, paths, [f['version'] for f in held])} where {chosen})"

    def cells(self, place: Place, stream: Stream) -> str:
        """The cells of a run's live generation, as SQL that goes on with `and`."""
        gen = place.history_gen if stream == "history" else place.system_gen
        return f"{self.relation(STREAM_TABLE[stream], [place.rid])} where gen = {gen}"

    # -- documents ----------------------------------------------------------------------------------------

    def stored(self, places: Iterable[Place], *, whole: bool = True) -> dict[int, Stored]:
        """The attributes of these runs, and their documents if `whole`; from memory where they were read before."""
        wanted = {(p.rid, p.gen): p for p in places}
        held = self._documents.get(wanted, whole)
        missing = [p for name, p in wanted.items() if name not in held]
        if missing:
            held |= self._documents.put(self._read(missing, whole))
        return {rid: stored for (rid, _), stored in held.items()}

    def _read(self, places: list[Place], whole: bool) -> list[Stored]:
        wanted = {(p.rid, p.gen): p for p in places}
        left_out = {"config", "summary"} | (set() if whole else set(HEAVY))
        columns = ", ".join(f'"{n}"' for n in tables()["runs"].names if n not in left_out)
        cursor = self.connect().execute(f"select {columns} from {self.relation('runs', [p.rid for p in places])}")
        names = [d[0] for d in cursor.description]
        empty = dict.fromkeys(() if whole else HEAVY)
        rows = (dict(zip(names, row, strict=True)) | empty for row in cursor.fetchall())
        return [Stored(wanted[n], run_of(r), whole) for r in rows if (n := (r["rid"], r["gen"])) in wanted]

    # -- listings -----------------------------------------------------------------------------------------

    def listing(
        self, condition: str, order: str, entity: str, project: str, live: Mapping[int, Run], version: int
    ) -> list[int]:
        """rids of the project's runs that satisfy a SQL condition over `runs`, in a SQL order, live runs included."""
        query = (
            "select rid from runs where entity = ? and project = ? and deleted_at is null "
            f"and ({condition}) order by {order}, rid"
        )
        with self._lock:
            connection = self._tables(live, version).connect()
        return [rid for (rid,) in connection.execute(query, [entity, project]).fetchall()]

    def by_creation(self, entity: str, project: str) -> list[tuple[int, int]]:
        """(created_at in µs, rid) of all runs of a project, oldest first."""
        name = (entity, project)
        if name not in self._by_creation:
            runs = self.index.of_project(entity, project)
            self._by_creation[name] = sorted((p.created_at or 0, p.rid) for p in runs)
        return self._by_creation[name]

    def _tables(self, live: Mapping[int, Run], version: int) -> Reader:
        """A reader of this snapshot with all tables and views. Making one costs more than most queries."""
        if not live:
            if self._reader is None:
                self._reader = _Tables(self.layout.root, self.snapshot, {})
            return self._reader
        if self._overlay is None or self._overlay[0] != version:
            gens = {rid: place.gen for rid in live if (place := self.index.places.get(rid))}
            self._overlay = (version, _Tables(self.layout.root, self.snapshot, _document_tail(live, gens)))
        return self._overlay[1]

    # -- projects -----------------------------------------------------------------------------------------

    def projects(self) -> list[Project]:
        """Every project that is known or has runs, of every source, by name; `run_count` counts the runs."""
        if self._projects is None:
            made = {(p.source, p.entity, p.name): p for p in self._recorded()}
            counts: dict[tuple[str, str, str], int] = {}
            first: dict[tuple[str, str, str], int] = {}
            for place in self.index.places.values():
                if place.deleted_at is None:
                    name = (place.source, place.entity, place.project)
                    counts[name] = counts.get(name, 0) + 1
                    if place.created_at is not None:
                        first[name] = min(place.created_at, first.get(name, place.created_at))
            for name in (counts.keys() | self._with_items()) - made.keys():
                at = EPOCH + timedelta(microseconds=first[name]) if name in first else None
                made[name] = Project(*name, created_at=at)
            with_counts = (replace(p, run_count=counts.get(name, 0)) for name, p in made.items())
            self._projects = sorted(with_counts, key=lambda p: (p.entity, p.name, p.source))
        return self._projects

    def _with_items(self) -> set[tuple[str, str, str]]:
        """(source, entity, project) of everything that has sweeps, artifacts or reports: its runs may be gone."""
        found: set[tuple[str, str, str]] = set()
        for table in ("sweeps", "artifact_collections", "reports"):
            if files := self.snapshot.files(table):
                rows = parquet(table, [str(self.layout.root / f["path"]) for f in files], [f["version"] for f in files])
                query = f"select distinct source, entity, project from ({rows}) where deleted_at is null"
                found.update(self.connect().execute(query).fetchall())
        return found

    def _recorded(self) -> list[Project]:
        files = self.snapshot.files("projects")
        if not files:
            return []
        source = parquet("projects", [str(self.layout.root / f["path"]) for f in files], [f["version"] for f in files])
        query = (
            "select source, entity, project, storage_id, description, created_at "
            f"from ({source}) order by source, entity, project, gen"
        )
        return [Project(*row) for row in self.connect().execute(query).fetchall()]


class _Tables(Reader):
    """A reader pinned to a given snapshot, with rows of live runs that the server knows better than the disk does."""

    def __init__(self, root: Path, snapshot: Snapshot, tail: dict[str, Any]) -> None:
        self.layout = Layout(root)
        self.snapshot = snapshot
        self._tail_tables = tail
        self._mark = []
        self._db = None


def _document_tail(live: Mapping[int, Run], gens: Mapping[int, int]) -> dict[str, Any]:
    versions = []
    for rid, run in live.items():
        gen = gens.get(rid, 0) + 1
        identity = Identity(rid, run.key, gen, gen, gen, 0)
        versions.append(Version(identity, run, {"history": StreamState(rows=run.history_line_count or 0)}, now()))
    return document_tables(versions)


EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def _overlap(ranges: Sequence[Sequence[int]], rids: Sequence[int]) -> bool:
    """Whether [first, last] ranges hold one of the rids, which are sorted."""
    for first, last in ranges:
        at = bisect_left(rids, first)
        if at < len(rids) and rids[at] <= last:
            return True
    return False


class _Documents:
    """The documents read last, by (rid, gen): a version never changes, so nothing here grows stale."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[int, int], tuple[int, Stored]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, wanted: Iterable[tuple[int, int]], whole: bool) -> dict[tuple[int, int], Stored]:
        with self._lock:
            found = {}
            for name in wanted:
                if name in self._held and (self._held[name][1].whole or not whole):
                    self._held.move_to_end(name)
                    found[name] = self._held[name][1]
            return found

    def put(self, read: Iterable[Stored]) -> dict[tuple[int, int], Stored]:
        found = {}
        with self._lock:
            for stored in read:
                name = (stored.place.rid, stored.place.gen)
                found[name] = stored
                self._bytes -= self._held.pop(name, (0, stored))[0]
                size = 2000 + sum(len(v) for v in stored.run.__dict__.values() if isinstance(v, str))
                self._held[name] = (size, stored)
                self._bytes += size
            while self._bytes > _HELD_BYTES and self._held:
                self._bytes -= self._held.popitem(last=False)[1][0]
        return found


class Shelves:
    """Hands out the shelf of the newest snapshot."""

    def __init__(self, layout: Layout) -> None:
        import duckdb

        self._layout = layout
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._shelf: Shelf | None = None
        self._db = duckdb.connect(":memory:")
        self._db.execute("set global parquet_metadata_cache = true")
        self._db.execute("set global TimeZone = 'UTC'")
        self._db.execute(f"create schema shape; use shape; {ddl()}; use main")

    def newest(self) -> Shelf:
        """The shelf of the newest snapshot. `StoreError` if the root is no mirror."""
        with self._lock:
            # snapshot.json is replaced as a whole, so a new one is another inode.
            try:
                stat = self._layout.snapshot.stat()
            except OSError:
                self._layout.read_snapshot()  # says what is wrong
                raise
            stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if self._shelf is None or stamp != self._stamp:
                self._shelf, self._stamp = Shelf(self._layout, self._db, self._shelf), stamp
            return self._shelf
