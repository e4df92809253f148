"""What is in segments: runs looked up by name or id, listings by filter and order, over one published snapshot.

A `Shelf` never changes; when a commit publishes a new snapshot the next request gets a new one (`Shelves`).
Runs that are still logging are not on it: their latest documents come from the spool (`live`), and are laid
over the stored versions here, so that one filter sees both.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirror.records import Run, RunKey
from mirror.store import Reader
from mirror.store.catalog import Identity, StreamState, now
from mirror.store.schema import tables
from mirror.store.versions import Version, document_tables, run_of

if TYPE_CHECKING:
    import duckdb

_HELD_BYTES = 64 << 20


HEAVY = ("config_raw", "summary_raw", "system_summary", "history_keys", "metadata")
"""Documents that listings leave out unless they are asked for."""


@dataclass(frozen=True)
class Stored:
    """A run as its live row in `runs` says; `row` has the columns of the table, None for those of `HEAVY`
    unless it was read `whole`."""

    rid: int
    gen: int
    run: Run
    row: Mapping[str, Any]
    whole: bool


@dataclass(frozen=True)
class Where:
    """Who a stored run is: one row of raw.live."""

    rid: int
    gen: int
    key: RunKey


class _Segments(Reader):
    """A reader of the files alone: this server knows its live tail better than the disk does."""

    def _live_mark(self) -> list[tuple[str, int]]:
        return []

    def _tail(self, content: dict[str, Any]) -> tuple[list[tuple[str, int]], dict[str, Any]]:
        return [], {}


class _Overlaid(_Segments):
    """The same with the documents of live runs laid over the stored ones."""

    def __init__(self, root: Path, tail: dict[str, Any]) -> None:
        self._given = tail
        super().__init__(root)

    def _tail(self, content: dict[str, Any]) -> tuple[list[tuple[str, int]], dict[str, Any]]:
        return [], self._given


class Shelf:
    """One snapshot."""

    def __init__(self, root: Path) -> None:
        self.reader = _Segments(root)
        self._root = root
        self._lock = threading.Lock()
        self._documents = _Documents()
        self._overlay: tuple[int, _Overlaid] | None = None

    @property
    def number(self) -> int:
        return self.reader.snapshot.id

    def connect(self) -> duckdb.DuckDBPyConnection:
        with self._lock:
            return self.reader.connect()

    # -- one run ------------------------------------------------------------------------------------------

    def find(self, entity: str, project: str, run_ids: Iterable[str]) -> list[Where]:
        """Runs of these names in all sources; deleted ones are not there."""
        return self._where("entity = ? and project = ? and run_id in (select unnest(?))", [entity, project, [*run_ids]])

    def find_id(self, source: str, storage_id: str) -> Where | None:
        """The run with this storage id. Storage ids are not in the table of live runs, so this reads `runs`."""
        query = "select rid from raw.runs_live where source = ? and storage_id = ? and deleted_at is null"
        rids = [rid for (rid,) in self.connect().execute(query, [source, storage_id]).fetchall()]
        found = self._where("rid in (select unnest(?))", [rids]) if rids else []
        return found[0] if found else None

    def was_deleted(self, source: str, entity: str, project: str, run_id: str) -> bool:
        query = (
            "select 1 from raw.live where source = ? and entity = ? and project = ? and run_id = ? "
            "and deleted_at is not null"
        )
        return self.connect().execute(query, [source, entity, project, run_id]).fetchone() is not None

    def where(self, rids: Sequence[int]) -> dict[int, Where]:
        return {w.rid: w for w in self._where("rid in (select unnest(?))", [list(rids)])} if rids else {}

    def _where(self, condition: str, parameters: list[Any]) -> list[Where]:
        query = (
            "select rid, gen, source, entity, project, run_id from raw.live "
            f"where {condition} and deleted_at is null order by rid"
        )
        rows = self.connect().execute(query, parameters).fetchall()
        return [Where(rid, gen, RunKey(source, "", e, p, r)) for rid, gen, source, e, p, r in rows]

    def stored(self, found: Iterable[Where], *, whole: bool = True) -> dict[int, Stored]:
        """The attributes of these runs, and their documents if `whole`; from memory where they were read before."""
        wanted = {(w.rid, w.gen) for w in found}
        held = self._documents.get(wanted, whole)
        missing = wanted - held.keys()
        if missing:
            held |= self._documents.put(self._read(missing, whole))
        return {rid: stored for (rid, _), stored in held.items()}

    def _read(self, wanted: set[tuple[int, int]], whole: bool) -> list[Stored]:
        rids = sorted({rid for rid, _ in wanted})
        relation = self.reader.relation("runs", rids[0]) if len(rids) == 1 else "raw.runs_live"
        left_out = {"config", "summary"} | (set() if whole else set(HEAVY))
        columns = ", ".join(f'"{n}"' for n in tables()["runs"].names if n not in left_out)
        cursor = self.connect().execute(f"select {columns} from {relation} where rid in (select unnest(?))", [rids])
        described = [d[0] for d in cursor.description]
        missing = dict.fromkeys(() if whole else HEAVY)
        rows = (dict(zip(described, row, strict=True)) | missing for row in cursor.fetchall())
        return [Stored(r["rid"], r["gen"], run_of(r), r, whole) for r in rows if (r["rid"], r["gen"]) in wanted]

    # -- listings -----------------------------------------------------------------------------------------

    def listing(
        self, condition: str, order: str, entity: str, project: str, live: Mapping[int, Run], version: int
    ) -> list[int]:
        """rids of the project's runs that satisfy a SQL condition over `runs`, in a SQL order, live runs included."""
        query = (
            "select rid from runs where entity = ? and project = ? and deleted_at is null "
            f"and ({condition}) order by {order}"
        )
        connection = self._overlaid(live, version).connect() if live else self.connect()
        return [rid for (rid,) in connection.execute(query, [entity, project]).fetchall()]

    def _overlaid(self, live: Mapping[int, Run], version: int) -> Reader:
        with self._lock:
            if self._overlay is None or self._overlay[0] != version:
                places = self.reader.connect().execute("select rid, gen from raw.live where rid in (select unnest(?))", [[*live]])
                gens = dict(places.fetchall())
                self._overlay = (version, _Overlaid(self._root, _document_tail(live, gens)))
            return self._overlay[1]

    def projects(self, entity: str | None = None, project: str | None = None) -> list[dict[str, Any]]:
        """Projects of every source that are known or have runs: source, entity, project, storage_id, description,
        created_at, updated_at, runs; narrowed to an entity or one project."""
        query = """
            select source, entity, project, max(storage_id) as storage_id, max(description) as description,
                   min(created_at) as created_at, max(updated_at) as updated_at, sum(runs)::bigint as runs
            from (select source, entity, project, storage_id, description, created_at, null as updated_at, 0 as runs
                  from projects
                  union all
                  select source, entity, project, null, null, min(created_at),
                         max(coalesce(updated_at, heartbeat_at)), count(*)
                  from runs where deleted_at is null group by all)
            where entity = coalesce(?, entity) and project = coalesce(?, project)
            group by source, entity, project order by entity, project, source"""
        cursor = self.connect().execute(query, [entity, project])
        names = [d[0] for d in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def entities(self) -> list[str]:
        query = "select entity from raw.live where deleted_at is null union select entity from projects order by 1"
        return [entity for (entity,) in self.connect().execute(query).fetchall()]

    def count(self, entity: str, project: str) -> int:
        """Runs of a project, deleted ones left out."""
        query = "select count(*) from raw.live where entity = ? and project = ? and deleted_at is null"
        found = self.connect().execute(query, [entity, project]).fetchone()
        return int(found[0]) if found else 0

    def has_project(self, entity: str, project: str) -> bool:
        query = (
            "select 1 where exists (select 1 from raw.live where entity = $1 and project = $2 and deleted_at is null) "
            "or exists (select 1 from projects where entity = $1 and project = $2)"
        )
        return self.connect().execute(query, [entity, project]).fetchone() is not None


def _document_tail(live: Mapping[int, Run], gens: Mapping[int, int]) -> dict[str, Any]:
    versions = []
    for rid, run in live.items():
        gen = gens.get(rid, 0) + 1
        identity = Identity(rid, run.key, gen, gen, gen, 0)
        versions.append(Version(identity, run, {"history": StreamState(rows=run.history_line_count or 0)}, now()))
    return document_tables(versions)


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
                name = (stored.rid, stored.gen)
                found[name] = stored
                self._bytes -= self._held.pop(name, (0, stored))[0]
                size = 2000 + sum(len(v) for v in stored.row.values() if isinstance(v, str))
                self._held[name] = (size, stored)
                self._bytes += size
            while self._bytes > _HELD_BYTES and self._held:
                self._bytes -= self._held.popitem(last=False)[1][0]
        return found


class Shelves:
    """Hands out the shelf of the newest snapshot."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._shelf: Shelf | None = None

    def newest(self) -> Shelf:
        with self._lock:
            # snapshot.json is replaced as a whole, so a new one is another inode.
            stat = (self._root / "snapshot.json").stat()
            stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if self._shelf is None or stamp != self._stamp:
                fresh = Shelf(self._root)
                if self._shelf is not None:
                    fresh._documents = self._shelf._documents
                self._shelf, self._stamp = fresh, stamp
            return self._shelf
