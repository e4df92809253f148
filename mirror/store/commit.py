"""Committing: segments first, then one transaction, then the published snapshot.

Killed before the transaction, the segments are orphans that the next writer removes; killed after it, the next
writer publishes. The cost of a commit is in proportion to what changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mirror.errors import StoreError
from mirror.records import Run
from mirror.store import segments, versions
from mirror.store.blobs import remove_leftovers
from mirror.store.catalog import Catalog, FileRow, Identity, StreamState, now
from mirror.store.compact import LARGE, Compacted, Progress, compact, vacuum
from mirror.store.layout import Layout
from mirror.store.locks import FileLock, held
from mirror.store.metrics import MetricStats
from mirror.store.removal import finish
from mirror.store.schema import tables
from mirror.store.snapshot import holds, publish
from mirror.store.views import write_database

_DESCRIBE_EVERY = 10.0  # seconds; mirror.duckdb costs more than a small commit


@dataclass
class OpenRun:
    """A run with changes that are not committed, or with a stream that is being written."""

    identity: Identity
    run: Run | None = None
    document_changed: bool = False
    nodes_of: set[str] = field(default_factory=set)
    streams: dict[str, StreamState] = field(default_factory=dict)
    live: dict[str, StreamState] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    writing: set[str] = field(default_factory=set)
    stats: MetricStats | None = None
    stats_gen: int = -1
    metrics_changed: bool = False

    @property
    def dirty(self) -> bool:
        return self.document_changed or bool(self.changed)


@dataclass
class Batch:
    """What was put since the last commit. `cells` are (rid, gen, first row, cells) by table and shard, `rows`
    are rows of other tables, `superseded` counts the versions these replace, `later` is what else the transaction
    has to do."""

    cells: dict[tuple[str, int], list[tuple[int, int, int, pa.Table]]] = field(default_factory=dict)
    rows: dict[str, list[pa.Table]] = field(default_factory=dict)
    superseded: dict[str, int] = field(default_factory=dict)
    later: list[Callable[[], None]] = field(default_factory=list)


class Committer:
    """Commits the batches of one writing session, and reads back what a change needs."""

    def __init__(self, layout: Layout, catalog: Catalog, session: str) -> None:
        self.layout = layout
        self.catalog = catalog
        self.session = session
        self._names = 0
        self._listed: tuple[int, list[FileRow]] | None = None
        self._stale = False
        self._described = time.monotonic()

    def describe(self) -> None:
        """Bring mirror.duckdb up to the last commit, and delete what was replaced long ago."""
        if self._stale:
            with held(self.layout.commit_lock):
                write_database(self.layout, self.layout.read_snapshot())
            self._stale = False
            self._described = time.monotonic()
            vacuum(self.layout, self.catalog)

    def end(self, unused: Sequence[int]) -> None:
        """Leave things tidy. Reserved numbers that no run got are given back if they were the last ones, so that many
        small syncs give neighbours to neighbours: what a segment holds is written down as ranges of numbers."""
        if unused:
            with self.catalog.transaction():
                if int(self.catalog.get("next_rid")) == max(unused) + 1:
                    self.catalog.put("next_rid", str(min(unused)))
        self.describe()

    def recover(self) -> None:
        """Finish or undo what writers that died have left: publish their last commit, remove their orphans."""
        dead = []
        for path in self.layout.sessions.glob("*.lock"):
            lock = FileLock(path)
            if path.stem != self.session and lock.acquire(wait=False):
                dead.append((path.stem, lock))
        if dead:
            remove_leftovers(self.layout.blobs)
        names = {name for name, _ in dead}
        left = [p for p in self.layout.data.rglob("*.parquet*") if p.name[:12] in names] if names else []
        with held(self.layout.commit_lock):
            committed = {row[0] for row in self.catalog.db.execute("select path from files")}
            for path in left:
                if str(path.relative_to(self.layout.root)) not in committed:
                    segments.remove_readonly(path)
            try:
                published = self.layout.read_snapshot()["snapshot"]
            except StoreError:
                published = -1
            if published != self.catalog.last_snapshot()[0]:
                publish(self.layout, self.catalog)
            if dead or published == -1:
                write_database(self.layout, self.layout.read_snapshot())
            finish(self.layout, self.catalog)
        for _, lock in dead:
            lock.release(remove=True)

    def compact(self, *, everything: bool, progress: Progress) -> Compacted:
        """Merge segments as far as they should be; see compact.py."""
        done = compact(
            self.layout, self.catalog, self.session, self.new_name, most=LARGE, everything=everything, progress=progress
        )
        self._stale |= done.merged > 0 or everything
        return done

    def commit(self, runs: list[OpenRun], batch: Batch) -> None:
        """Make a batch and the changes of these runs visible, durably and at once; does nothing if there are none."""
        dirty = [found for found in runs if found.dirty]
        at = now()
        made: list[tuple[str, int, pa.Table]] = []
        made += [(table, shard, segments.sorted_cells(parts)) for (table, shard), parts in batch.cells.items() if parts]
        made += [(table, 0, pa.concat_tables(parts)) for table, parts in batch.rows.items()]
        superseded = dict(batch.superseded)
        made += [(table, 0, rows) for table, rows in self._document_rows(dirty, at, superseded).items()]
        made = [part for part in made if part[2].num_rows]
        if not (made or dirty or batch.later):
            return
        identities = {f.identity.rid: f.identity for f in runs}
        written: list[FileRow] = []
        try:
            for table, shard, rows in made:
                inside = _inside(rows, identities)
                written.append(
                    segments.write_segment(self.layout, self.new_name(), table, rows, shard=shard, identities=inside)
                )
            with held(self.layout.commit_lock), self.catalog.transaction():
                self._save(dirty, batch, written, superseded, at)
        except BaseException:
            # An interrupt may arrive when the transaction is through: only the catalog knows.
            committed = {file.path for file in self.catalog.files()}
            for file in written:
                if file.path not in committed:
                    segments.remove_readonly(self.layout.root / file.path)
            raise
        if written:
            with held(self.layout.commit_lock):
                publish(self.layout, self.catalog)
            self._stale = True
            compact(self.layout, self.catalog, self.session, self.new_name)
            if time.monotonic() - self._described > _DESCRIBE_EVERY:
                self.describe()
        for found in dirty:
            found.document_changed = found.metrics_changed = False
            found.nodes_of.clear()
            found.changed.clear()
            found.live.update({s: state for s, state in found.streams.items() if not state.pending})

    def _document_rows(self, dirty: list[OpenRun], at: datetime, superseded: dict[str, int]) -> dict[str, pa.Table]:
        """Give every run whose visible state changes its next version, and make its rows."""
        rows: list[versions.Version] = []
        metrics: list[pa.Table] = []

        def replaced(table: str, old: int) -> None:
            superseded[table] = superseded.get(table, 0) + (old > 0)

        shown = [f for f in dirty if f.document_changed or any(not f.streams[s].pending for s in f.changed)]
        lacking = [f for f in shown if f.run is None or (f.run.metadata is None and f.identity.gen)]
        stored = self._stored_runs([f.identity for f in lacking])
        for found in lacking:
            old = stored.get(found.identity.rid)
            if found.run and old:
                found.run = replace(found.run, metadata=old.metadata)
            elif old:
                found.run = old
            elif not found.run:
                raise StoreError(
                    f"run `{found.identity.key.path}` is in the catalog, but not in the data: "
                    f"run `mirror repair --mirror {self.layout.root}`"
                )
        for found in shown:
            identity = found.identity
            assert found.run is not None
            new = identity.gen + 1
            replaced("runs", identity.gen)
            for document in found.nodes_of:
                replaced(document, getattr(identity, f"{document}_gen"))
                setattr(identity, f"{document}_gen", new)
            history = found.streams.get("history")
            if found.metrics_changed and history and not history.pending:
                replaced("metric", identity.metric_gen)
                identity.metric_gen = new
                stats = self.stats(found, history).table()
                metrics.append(_with_ids(identity.rid, new, stats))
            identity.gen = new
            streams = found.live | {s: state for s, state in found.streams.items() if not state.pending}
            rows.append(versions.Version(identity, found.run, streams, at, tuple(found.nodes_of)))
        made = versions.document_tables(rows) if rows else {}
        if metrics:
            made["metric"] = pa.concat_tables(metrics).cast(tables()["metric"])
        return made

    def _save(
        self,
        dirty: list[OpenRun],
        batch: Batch,
        written: list[FileRow],
        superseded: dict[str, int],
        at: datetime,
    ) -> None:
        """The one transaction of a commit."""
        for found in dirty:
            expected = self.catalog.live_gen(found.identity.rid)
            if expected and expected > found.identity.gen:
                raise StoreError(
                    f"run `{found.identity.key.path}` was changed by another writer meanwhile: run the command again"
                )
            self.catalog.save_run(found.identity)
            for stream in found.changed:
                self.catalog.save_stream(found.identity.rid, stream, found.streams[stream])
        for later in batch.later:
            later()
        for table, count in superseded.items():
            self.catalog.supersede(table, count)
        if written:
            snapshot = self.catalog.new_snapshot(at, self.session)
            for file in written:
                self.catalog.add_file(file, snapshot)

    def new_name(self) -> str:
        self._names += 1
        return f"{self.session}-{self._names:06d}"

    def stats(self, found: OpenRun, state: StreamState) -> MetricStats:
        if found.stats is None or found.stats_gen != state.gen:
            found.stats, found.stats_gen = MetricStats(), state.gen
            if state.rows:
                live = found.live.get("history")
                if live and live.gen == state.gen and live.rows == state.rows:
                    found.stats.load(self.read("metric", [found.identity.rid], [found.identity.metric_gen]))
                else:
                    cells = self.read("history", [found.identity.rid], [state.gen])
                    found.stats.add(cells.sort_by("row"), 0)
        return found.stats

    def _stored_runs(self, identities: list[Identity]) -> dict[int, Run]:
        """rid -> the live version of these runs, read back from the data."""
        return {rid: versions.run_of(row) for rid, row in self.held_runs(identities).items()}

    def held_runs(self, identities: list[Identity]) -> dict[int, dict[str, Any]]:
        """rid -> the live row of `runs`, as it is committed."""
        if not identities:
            return {}
        gens = {i.rid: i.gen for i in identities}
        rows = self.read("runs", [*gens], [*gens.values()]).to_pylist()
        return {row["rid"]: row for row in rows if row["gen"] == gens[row["rid"]]}

    def read(self, table: str, rids: list[int], gens: list[int]) -> pa.Table:
        """Rows of these runs and versions, from the few files that hold them."""
        number = self.catalog.last_snapshot()[0]
        if self._listed is None or self._listed[0] != number:
            self._listed = (number, self.catalog.files())
        wanted = [("rid", "in", rids), ("gen", "in", gens)]
        parts = [tables()[table].empty_table()]
        for file in self._listed[1]:
            if file.table == table and any(holds(file.rids, rid) for rid in rids):
                parts.append(segments.read(self.layout.root / file.path, table, wanted))
        return pa.concat_tables(parts)


def _with_ids(rid: int, gen: int, rows: pa.Table) -> pa.Table:
    ids = [pa.repeat(pa.scalar(n, pa.int64()), rows.num_rows) for n in (rid, gen)]
    return pa.table([*ids, *rows.columns], names=["rid", "gen", *rows.column_names])


def _inside(rows: pa.Table, identities: dict[int, Identity]) -> list[tuple[Any, ...]]:
    """Who the runs in these rows are, for the footer."""
    if "rid" not in rows.column_names:
        return []
    found = []
    for rid in pc.unique(rows["rid"]).to_pylist():
        if rid in identities:
            k = identities[rid].key
            found.append((rid, k.source, k.storage_id, k.entity, k.project, k.run_id))
    return found
