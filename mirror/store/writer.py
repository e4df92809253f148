"""The writer: records go in, each commit makes everything put since the last one visible at once.

How a commit does that is told in commit.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mirror.records import Change, Failure, Fetched, FileEntry, Item, ItemKey, Project, Run, RunKey, Stream, SyncReport
from mirror.store import edits, projects, versions
from mirror.store.catalog import Catalog, Identity, Known, StreamState, ahead, iso, now
from mirror.store.cells import CellBatch, decode
from mirror.store.commit import Batch, Committer, OpenRun
from mirror.store.compact import Compacted, Progress
from mirror.store.items import Items, KnownItem
from mirror.store.layout import Layout, shard_of
from mirror.store.locks import FileLock, Lease
from mirror.store.schema import STREAM_TABLE, tables
from mirror.store.tablefiles import note_tables

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

LogLine = tuple[int, "datetime | None", "str | None", str]
"""Line number, time, level, text."""

_RIDS_AT_A_TIME = 1000


class Writer:
    """Appends to the mirror at `root` (made if `create`). To be used from one thread, best as a context manager:
    leaving it commits, leaving it by an exception drops what was not committed.

    `flush_bytes` and `flush_seconds` (default: the environment's MIRROR_FLUSH_SECONDS, then 30) say when buffered rows
    are committed without being asked.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        create: bool = True,
        flush_bytes: int = 32 << 20,
        flush_seconds: float | None = None,
    ) -> None:
        self.layout = Layout(root)
        if create:
            self.layout.make()
        elif not self.layout.catalog.exists():
            self.layout.read_snapshot()
        self.flush_bytes = flush_bytes
        self.flush_seconds = (
            float(os.environ.get("MIRROR_FLUSH_SECONDS") or 30) if flush_seconds is None else flush_seconds
        )
        self.session = uuid.uuid4().hex[:12]
        self._cleanup = ExitStack()
        self._lock = FileLock(self.layout.sessions / f"{self.session}.lock")
        self.layout.sessions.mkdir(exist_ok=True)
        self._lock.acquire(wait=False)
        self._cleanup.callback(self._lock.release, remove=True)
        try:
            self.catalog = Catalog(self.layout)
            self._cleanup.callback(self.catalog.close)
            self._committer = Committer(self.layout, self.catalog, self.session)
            self._committer.recover()
        except BaseException:
            self._cleanup.close()
            raise
        self.store_id = self.catalog.get("store_id")
        self._leases: dict[tuple[str, str, str], tuple[Lease, int]] = {}
        self._cleanup.callback(self._release_leases)
        self._reserved: list[int] = []
        self._open: dict[tuple[str, str], OpenRun] = {}
        self._items = Items(self.catalog, self._committer, self.reserve_rid)
        self._after: list[Callable[[], None]] = []
        self.before_commit: Callable[[], None] = lambda: None
        """Called before every commit: the last chance to put something into it."""
        self._reset()

    def _reset(self) -> None:
        self._batch = Batch()
        self._buffered = 0
        self._since = time.monotonic()

    # -- life ---------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.close()

    def close(self) -> None:
        """Release everything; what was not committed is dropped."""
        try:
            self._committer.end(self._reserved)
        finally:
            self._cleanup.close()

    def _release_leases(self) -> None:
        for lease, _ in self._leases.values():
            lease.release()
        self._leases.clear()

    @contextmanager
    def lease(self, source: str, entity: str, project: str) -> Iterator[None]:
        """Hold the right to write a project's runs. `LockedError` names who holds it now."""
        self._take_lease(source, entity, project)
        try:
            yield
        finally:
            lease, count = self._leases[(source, entity, project)]
            if count == 1:
                del self._leases[(source, entity, project)]
                lease.release()
            else:
                self._leases[(source, entity, project)] = (lease, count - 1)

    def _take_lease(self, source: str, entity: str, project: str) -> None:
        name = (source, entity, project)
        lease, count = self._leases.get(name) or (Lease(self.layout.leases, *name), 0)
        self._leases[name] = (lease, count + 1)

    def _lease_for(self, key: RunKey | ItemKey) -> None:
        """Every change needs its project's lease; one that was not asked for is held until the end."""
        if (name := (key.source, key.entity, key.project)) not in self._leases:
            self._take_lease(*name)

    # -- what is known ------------------------------------------------------------------------------------

    def known(self, source: str, entity: str, project: str) -> dict[str, Known]:
        """Every run the mirror holds of a project, by storage id: what a plan is made from."""
        return self.catalog.known(source, entity, project)

    def state(self, key: RunKey, stream: Stream | str) -> StreamState:
        """The generation of the stream that appends go to; zero rows if there is none yet."""
        return self._opened(key).streams.get(stream, StreamState())

    def quarantined(self, source: str, entity: str, project: str) -> list[Failure]:
        """The project's runs that keep failing."""
        return self.catalog.quarantined(source, entity, project)

    def _opened(self, key: RunKey, rid: int | None = None) -> OpenRun:
        name = (key.source, key.storage_id)
        found = self._open.get(name)
        if found is None:
            self._lease_for(key)
            identity = self.catalog.find(*name)
            if identity is None:
                identity = Identity(self.reserve_rid() if rid is None else rid, key)
            found = self._open[name] = OpenRun(identity)
            for (_, stream), states in self.catalog.streams([identity.rid]).items():
                if True in states:
                    found.live[stream] = states[True]
                found.streams[stream] = states[False] if ahead(states) else states[True]
        return found

    def reserve_rid(self) -> int:
        """A number for a run that is put later, with `put_run(run, rid=..)`. Nobody else ever gets it."""
        if not self._reserved:
            self._reserved = list(reversed(self.catalog.reserve_rids(_RIDS_AT_A_TIME)))
        return self._reserved.pop()

    def items(self, kind: str, source: str, entity: str, project: str) -> dict[str, KnownItem]:
        """The project's sweeps, artifact_collections, artifacts or reports (`kind`) by storage id, as committed."""
        return self._items.known(kind, source, entity, project)

    @property
    def changed_items(self) -> int:
        """How many new versions of items were put so far."""
        return self._items.changed

    # -- putting records ----------------------------------------------------------------------------------

    def put_project(self, project: Project) -> None:
        """Record a project; nothing is written if it is held as it is."""
        projects.put(self.catalog, self._batch, project)

    def missed_project(self, project: Project) -> int:
        """Note that its source said there is no such project; returns how many times in a row it did."""
        return projects.missed(self.catalog, self._batch, project)

    def drop_project(self, project: Project) -> None:
        """Mark a project as deleted at its source. Nothing that was mirrored is removed."""
        projects.drop(self.catalog, self._batch, project)

    def put_run(self, run: Run, *, fingerprint: str | None = None, rid: int | None = None) -> int:
        """Record a run's attributes and documents; returns its rid. A version equal to the held one writes nothing.

        `rid` is the number a new run was given before (`reserve_rid`). `fingerprint` is what the source's listing
        said; it is kept for the next plan. A run without `metadata` keeps the one that is held, since metadata is a
        file that sources fetch only when it changed.
        """
        found = self._opened(run.key, rid)
        identity = found.identity
        old, new = (identity.digest or ":::").split(":"), versions.digest(run).split(":")
        if identity.gen and run.metadata is None:
            new[3] = old[3]
        found.run = run
        identity.key = run.key
        if new != old or identity.deleted_at:
            found.document_changed = True
            changed = {i for i, part in enumerate(new) if part != old[i]}
            found.nodes_of |= {name for i, name in ((1, "config"), (2, "summary")) if i in changed}
            identity.digest = ":".join(new)
        identity.deleted_at = None
        self.set_fingerprint(run.key, fingerprint or identity.fingerprint)
        # A document is held as its record, its texts in a row and its nodes until it is written.
        self._buffered += 2048 + 5 * (len(run.config or "") + len(run.summary or ""))
        self._flush_if_due()
        return identity.rid

    def put_item(self, item: Item) -> int:
        """Record a sweep, a collection, an artifact or a report; returns its rid. One equal to the held version
        writes nothing. An artifact whose `entries` or `uses` are None keeps the ones that are held."""
        self._lease_for(item.key)
        rid, size = self._items.put(item, self._batch)
        self._buffered += size
        self._flush_if_due()
        return rid

    def drop_item(self, kind: str, key: ItemKey, *, at: datetime | None = None) -> None:
        """Mark an item of the table `kind` as deleted. Nothing that was mirrored is removed."""
        self._lease_for(key)
        self._items.drop(kind, key, self._batch, at)

    def missed_item(self, kind: str, key: ItemKey) -> int:
        """Note that a complete listing lacked the item; returns how many in a row did."""
        self._lease_for(key)
        return self._items.missed(kind, key, self._batch)

    def is_changed(self, key: RunKey) -> bool:
        """Whether something was put since the last commit that changes what is held of the run."""
        found = self._open.get((key.source, key.storage_id))
        return found is not None and found.dirty

    def set_fingerprint(self, key: RunKey, fingerprint: str | None, *, checked_at: datetime | None = None) -> None:
        """Note what the listing said of a run, and that it was just compared with its source. Writes no segment."""
        identity = self._opened(key).identity
        identity.fingerprint = fingerprint
        identity.checked_at = iso(checked_at or now())
        identity.missing = 0
        self._save_later(identity)

    def _save_later(self, identity: Identity) -> None:
        def save() -> None:
            if identity.gen or self.catalog.find(identity.key.source, identity.key.storage_id):
                self.catalog.save_run(identity)

        self._batch.later.append(save)

    def begin(self, key: RunKey, stream: Stream, *, keep: bool = False) -> None:
        """Start a new generation of a stream. The old one stays visible until `publish`. With `keep` the
        catalog remembers it even while it is empty."""
        found = self._opened(key)
        gen = 1 + max(self.catalog.newest_gen(found.identity.rid, stream), found.streams.get(stream, StreamState()).gen)
        self._drop_buffered(found, stream)
        found.streams[stream] = StreamState(gen=gen, pending=stream in found.live)
        if stream == "history":
            found.stats = None
        found.writing.add(stream)
        if keep:
            found.changed.add(stream)

    def _drop_buffered(self, found: OpenRun, stream: Stream) -> None:
        """Rows of an unpublished generation that never reached a segment need not do so any more. A first one that was
        never committed is known to no catalog, so that nothing would tell readers to leave its rows out."""
        state = found.streams.get(stream)
        if state and (state.pending or stream not in found.live):
            for (table, _), parts in self._batch.cells.items():
                if table == STREAM_TABLE[stream]:
                    parts[:] = [p for p in parts if p[:2] != (found.identity.rid, state.gen)]

    def append(self, key: RunKey, stream: Stream, rows: Sequence[str] | CellBatch) -> None:
        """Append logged rows (JSON texts of objects, or what `cells.decode` made of them) in logged order.

        Rows of a first or a live generation are visible with the next commit, those of a generation that was
        begun with `publish`. Commits by itself when enough is buffered.
        """
        batch = rows if isinstance(rows, CellBatch) else decode(rows)
        if not batch.rows:
            return
        found = self._opened(key)
        state = found.streams.get(stream) or StreamState(gen=1)
        steps = [s for s in (state.last_step, batch.last_step) if s is not None]
        table = STREAM_TABLE[stream]
        part = (found.identity.rid, state.gen, state.rows, batch.table)
        self._batch.cells.setdefault((table, shard_of(key)), []).append(part)
        if stream == "history":
            self._committer.stats(found, state).add(batch.table, state.rows)
            found.metrics_changed = True
        found.streams[stream] = replace(
            state,
            rows=state.rows + batch.rows,
            last_step=max(steps, default=None),
            last_fingerprint=batch.last_fingerprint,
            fetched=state.fetched or Fetched(stream, "rows", complete=False),
        )
        found.changed.add(stream)
        found.writing.add(stream)
        self._buffered += batch.nbytes + 16 * batch.table.num_rows
        self._flush_if_due()

    def _flush_if_due(self) -> None:
        if self._buffered >= self.flush_bytes or time.monotonic() - self._since >= self.flush_seconds:
            self.commit()

    def publish(self, key: RunKey, stream: Stream, fetched: Fetched) -> None:
        """Say what became of a stream that was read to its end; a generation that was begun becomes visible."""
        found = self._opened(key)
        state = found.streams.get(stream) or StreamState(gen=1)
        done = replace(state, pending=False, fetched=fetched)
        if done != found.live.get(stream):
            if state.pending or (stream == "history" and state.gen != found.live.get(stream, state).gen):
                found.metrics_changed = True
            found.streams[stream] = done
            found.changed.add(stream)
        found.writing.discard(stream)

    def put_files(self, key: RunKey, files: Sequence[FileEntry]) -> None:
        """Replace a run's file manifest; an equal one writes nothing. Bytes that are held stay with a file whose name,
        size and md5 stay the same."""
        entries = sorted(files, key=lambda f: f.name)
        # Addresses are signed anew at every listing, so they do not make a manifest a different one.
        said = [(f.name, f.size, f.md5, f.mimetype, iso(f.updated_at), f.storage_id) for f in entries]
        new = hashlib.blake2b(repr(said).encode(), digest_size=12).hexdigest()
        state = self._opened(key).streams.get("files", StreamState())
        if state.last_fingerprint == new and not any(f.sha256 for f in entries):
            return
        held = self._held_files(key, state)
        entries = [replace(f, sha256=f.sha256 or held.get((f.name, f.size, f.md5))) for f in entries]
        more = {f.name for f in entries if f.sha256 and held.get((f.name, f.size, f.md5)) != f.sha256}
        if state.last_fingerprint == new and not more:
            return
        names = ["name", "size", "md5", "mimetype", "updated_at", "storage_id", "url", "sha256"]
        self._put_rows(key, "files", [[getattr(f, n) for f in entries] for n in names], replace(
            state, gen=state.gen + 1, rows=len(entries), last_fingerprint=new
        ))  # fmt: skip

    def put_blobs(self, key: RunKey | ItemKey, held: Mapping[str, FileEntry]) -> None:
        """Note which blobs (`sha256`) hold the bytes of files of a run or an artifact, by name. Those of runs replace
        what was known of them. The manifest must be committed."""
        hashes = {name: entry.sha256 for name, entry in held.items() if entry.sha256}
        if isinstance(key, ItemKey):
            self._lease_for(key)
            self._buffered += self._items.hold(key, hashes, self._batch)
            self._flush_if_due()
            return
        rid, state = self._opened(key).identity.rid, self._opened(key).streams.get("files", StreamState())
        note_tables(self._batch, self.layout, rid, hashes)
        rows = self._committer.read("files", [rid], [state.gen]).to_pylist()
        entries = [{n: v for n, v in row.items() if n not in ("rid", "gen")} for row in rows]
        self.put_files(key, [held.get(e["name"]) or FileEntry(**e) for e in entries])

    def _held_files(self, key: RunKey, state: StreamState) -> dict[tuple[str, int | None, str | None], str]:
        """(name, size, md5) -> sha256 of a run's files whose bytes are held."""
        if not state.rows or not self.layout.blobs.exists():
            return {}
        rows = self._committer.read("files", [self._opened(key).identity.rid], [state.gen]).to_pylist()
        return {(r["name"], r["size"], r["md5"]): r["sha256"] for r in rows if r["sha256"]}

    def put_logs(self, key: RunKey, lines: Sequence[LogLine], *, restart: bool = False) -> None:
        """Append console lines, in order; lines already held are skipped. `restart` replaces all of them."""
        state = self._opened(key).streams.get("logs") or StreamState(gen=1)
        if restart and state.rows:
            state = StreamState(gen=state.gen + 1)
            self._opened(key).streams["logs"] = state
            self._opened(key).changed.add("logs")
        lines = [line for line in lines if line[0] >= state.rows]
        if lines:
            columns = [list(column) for column in zip(*lines, strict=True)]
            self._put_rows(key, "logs", columns, replace(state, rows=max(columns[0]) + 1))

    def _put_rows(self, key: RunKey, stream: str, columns: list[list[Any]], state: StreamState) -> None:
        found = self._opened(key)
        ids = [[number] * len(columns[0]) for number in (found.identity.rid, state.gen)]
        made = pa.table([*ids, *columns], schema=tables()[STREAM_TABLE[stream]])
        self._batch.rows.setdefault(STREAM_TABLE[stream], []).append(made)
        self._buffered += made.nbytes
        found.streams[stream] = state
        found.changed.add(stream)

    def _put_row(self, table: str, row: dict[str, Any]) -> None:
        self._batch.rows.setdefault(table, []).append(pa.Table.from_pylist([row], schema=tables()[table]))

    def show(self, key: RunKey, **said: str | int | None) -> None:
        """Say how a run that is held twice is shown: `origin`, `merged_into`, `judged` as in the catalog's `runs`."""
        found = self._opened(key)
        for name, value in said.items():
            found.document_changed |= name != "judged" and getattr(found.identity, name) != value
            setattr(found.identity, name, value)
        self._save_later(found.identity)

    def is_own(self, key: RunKey, stream: str) -> None:
        """What comes of this stream from now on is of the run's own source, whatever gave it before."""
        held = json.loads(self._opened(key).identity.origin or "{}")
        if held.pop(stream, None):
            self.show(key, origin=json.dumps(held) if held else None)

    # -- gone, failing, done ------------------------------------------------------------------------------

    def missed(self, key: RunKey) -> int:
        """Note that a complete listing lacked the run; returns how many in a row did."""
        identity = self._opened(key).identity
        identity.missing += 1
        self._save_later(identity)
        return identity.missing

    def tombstone(self, key: RunKey) -> None:
        """Mark a run as deleted at its source. Nothing that was mirrored is removed."""
        found = self._opened(key)
        if not found.identity.deleted_at:
            found.identity.deleted_at = iso(now())
            found.document_changed = True

    def quarantine(self, failure: Failure) -> None:
        """Keep a failure, so that the run is left alone until `next_try` and everybody can see why."""
        identity = self._opened(failure.key).identity
        self._batch.later += [
            lambda: self.catalog.save_run(identity),
            lambda: self.catalog.save_failure(failure),
        ]
        self._put_failure(failure)

    def mended(self, key: RunKey, stage: str) -> None:
        """The run could be fetched after all; does nothing if it was not in quarantine."""
        if self.catalog.failing(key, stage):
            self._batch.later.append(lambda: self.catalog.forget_failure(key, stage))
            self._put_failure(Failure(key, stage, "", 0, now()))

    def _put_failure(self, f: Failure) -> None:
        who = {n: getattr(f.key, n) for n in ("source", "entity", "project", "run_id")}
        said = {n: getattr(f, n) for n in ("stage", "error", "attempts", "next_try")}
        self._put_row("quarantine", {"rid": self._opened(f.key).identity.rid, **who, **said, "failed_at": now()})

    def log_sync(self, report: SyncReport) -> None:
        """Keep the outcome of a sync. One that changed nothing and failed nowhere only moves the project's
        `checked_at` in the catalog, so that it writes no file."""
        r = report
        self._batch.later.append(
            lambda: self.catalog.checked_project(r.source, r.entity, r.project, r.finished_at, r.outcome, r.message)
        )
        if r.outcome != "ok" or r.runs_new + r.runs_changed + r.runs_gone + r.runs_failed + r.items_changed:
            self._put_row("sync_log", {n: getattr(r, n) for n in tables()["sync_log"].names})

    def put_changes(self, changes: Sequence[Change]) -> None:
        """Record what a sync saw change."""
        if changes:
            self._batch.rows.setdefault("changes", []).append(edits.as_rows(changes))

    def edited_runs(self) -> Iterator[edits.EditedRun]:
        """The runs whose documents the next commit will write."""
        return edits.edited_runs(self._open.values(), self._committer)

    def edited_items(self) -> Iterator[edits.EditedItem]:
        """The sweeps, collections, artifacts and reports of which the next commit will write a version."""
        return edits.edited_items(self._items, self._committer)

    def commit(self) -> None:
        """Make everything put so far visible, durably and at once. Does nothing if there is nothing to do."""
        self.before_commit()
        after, self._after = self._after, []
        self._committer.commit(list(self._open.values()), self._batch)
        self._items.committed()
        self._open = {name: found for name, found in self._open.items() if found.writing}
        self._reset()
        for callback in after:
            callback()

    def new_name(self) -> str:
        """A name for a segment that is written outside of `commit`."""
        return self._committer.new_name()

    def compact(self, *, everything: bool = False, progress: Progress = iter) -> Compacted:
        """Commit, then merge what has become due into large segments; with `everything` also what could wait."""
        self.commit()
        return self._committer.compact(everything=everything, progress=progress)

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Call back once what was put so far is durable and visible."""
        self._after.append(callback)
