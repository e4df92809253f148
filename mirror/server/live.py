"""Runs that are logging to this server: their documents in memory and in the spool, their lines in the spool only.

A run is live from its first `upsertBucket` (or the first line after it had ended) until it ends: it is then
drained into segments. A run that stops sending heartbeats ends as `crashed`. Locks: a run's own lock is held
while something is appended to it and while it is drained; nobody waits for the writer thread with it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from mirror.records import FileEntry, Project, Run, RunKey
from mirror.server.history.keys import KeyCatalogue
from mirror.server.index import Place
from mirror.server.rows import dumps, parse_row
from mirror.server.shelf import Shelf
from mirror.server.writing import WriterThread
from mirror.store import Spool, Writer
from mirror.store.cells import CellBatch
from mirror.store.disk import explained
from mirror.store.layout import Layout
from mirror.store.live import SpoolStream, parts

ENDED = {"finished", "failed", "crashed", "killed", "preempted"}
BEATING = {"running", "preempting"}
"""States in which heartbeats are expected; a `pending` run has no process yet."""

DRAIN_BYTES = 16 << 20
"""Live lines of a run beyond this become segments while it goes on; reading them costs a scan of the file."""

_GRACE = 90.0  # seconds after a restart in which clients, who retry with up to 60 s between tries, come back


def now() -> datetime:
    return datetime.now(timezone.utc)


@dataclass
class LiveRun:
    """What the server knows of a live run beyond its spool."""

    rid: int
    beat: float
    files: dict[str, FileEntry] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    reading: threading.RLock = field(default_factory=threading.RLock)
    """Held while `catalogue` and `system` are brought up to date; to be taken after `lock` if both are."""
    catalogue: KeyCatalogue = field(default_factory=KeyCatalogue)
    catalogued: int = 0
    system: dict[str, Any] = field(default_factory=dict)
    system_seen: int = 0
    stop_asked: bool = False
    draining: bool = False
    deleted: bool = False
    gone: bool = False


class LiveRuns:
    """All live runs. Reading methods never wait for the writer."""

    def __init__(self, spool: Spool, pen: WriterThread, crash_after: float) -> None:
        self.spool = spool
        self._pen = pen
        self._layout: Layout = spool.layout
        self._crash_after = crash_after
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._projects: dict[tuple[str, str], Project] = {}
        self._runs: dict[int, LiveRun] = {}
        self._by_name: dict[tuple[str, str, str], int] = {}
        self.version = 0
        """Grows with every change of a document, for caches."""
        self._closing = threading.Event()
        self._watch = threading.Thread(target=self._watching, name="heartbeats", daemon=True)

    # -- life ---------------------------------------------------------------------------------------------

    def start(self, shelf: Shelf) -> None:
        """Take up what an earlier server left in the spool, then watch heartbeats. `shelf` is the newest snapshot."""
        spooled = self.spool.runs()
        for rid in spooled:
            if (place := shelf.index.places.get(rid)) is not None:
                self.spool.set_drained(rid, drained(place))
        grace = time.time() - self._crash_after + min(_GRACE, self._crash_after)
        for rid, run in spooled.items():
            beat = run.heartbeat_at.timestamp() if run.heartbeat_at else 0.0
            cut_torn_line(self._files_path(rid))
            live = self._hold(rid, run, max(beat, grace))
            live.files = read_files(self._layout, rid)
            live.deleted = rid in shelf.index.places and shelf.index.places[rid].deleted_at is not None
            if run.state in ENDED:
                self._drain(live, final=True)
        self._watch.start()

    def close(self) -> None:
        self._closing.set()
        if self._watch.is_alive():
            self._watch.join()
        self._pen.do(lambda _: None)
        self.spool.close()

    def _hold(self, rid: int, run: Run, beat: float) -> LiveRun:
        live = LiveRun(
            rid,
            beat,
            catalogue=KeyCatalogue(run.history_keys),
            catalogued=run.history_line_count or 0,
            system=parse_row(run.system_summary) if run.system_summary else {},
            system_seen=run.events_line_count or 0,
        )
        with self._lock:
            self._runs[rid] = live
            self._by_name[(run.key.entity, run.key.project, run.key.run_id)] = rid
            self.version += 1
        return live

    def _forget(self, live: LiveRun, key: RunKey) -> None:
        with self._lock:
            live.gone = True
            if self._runs.get(live.rid) is live:
                del self._runs[live.rid]
                self._by_name.pop((key.entity, key.project, key.run_id), None)
            self.version += 1

    # -- looking up ---------------------------------------------------------------------------------------

    def documents(self) -> dict[int, Run]:
        """rid -> latest documents of every live run."""
        with self._lock:
            spooled = self.spool.runs()
            return {rid: spooled[rid] for rid, live in self._runs.items() if rid in spooled and not live.deleted}

    def get(self, rid: int) -> LiveRun | None:
        return self._runs.get(rid)

    def find(self, entity: str, project: str, run_id: str) -> int | None:
        rid = self._by_name.get((entity, project, run_id))
        live = None if rid is None else self._runs.get(rid)
        return None if live is None or live.deleted else rid

    # -- changing -----------------------------------------------------------------------------------------

    def open(self, rid: int, run: Run, drained: dict[SpoolStream, int], files: Mapping[str, FileEntry]) -> None:
        """Make a run live that is new, or whose lines are all in segments."""
        with self._opening:
            if rid in self._runs and self._spooled(rid):
                return
            # The file list comes first: a run found without one after a crash would be drained without its files.
            path = self._files_path(rid)
            path.parent.mkdir(exist_ok=True)
            path.unlink(missing_ok=True)
            if files:
                self._append_files(rid, files.values())
            self.spool.open(rid, run, drained=drained)
            live = self._hold(rid, run, time.time())
            live.files = dict(files)

    @contextmanager
    def held(self, rid: int) -> Iterator[LiveRun | None]:
        """The live run, locked; None if it has ended and been drained."""
        live = self._runs.get(rid)
        if live is None:
            yield None
            return
        with live.lock:
            yield live if not live.gone and self._spooled(rid) else None

    def beat(self, live: LiveRun, **changes: Any) -> Run:
        """A sign of life, and changes of documents that came with it; durable when this returns. Lock held."""
        run = self.spool.run(live.rid)
        at = now()
        live.beat = at.timestamp()
        stale = run.heartbeat_at is None or (at - run.heartbeat_at).total_seconds() > 5
        changes = {name: value for name, value in changes.items() if getattr(run, name) != value}
        if run.state not in BEATING and "state" not in changes:
            changes["state"] = "running"
        if changes or stale:
            run = self._put(live, replace(run, heartbeat_at=at, updated_at=at, **changes))
        return run

    def relieve(self, live: LiveRun) -> None:
        """Have many live lines moved to segments. Lock held."""
        if self.spool.nbytes(live.rid) > DRAIN_BYTES:
            self._drain(live, final=False)

    def edit(self, live: LiveRun, **changes: Any) -> Run:
        """Change documents without it being a sign of life (somebody else edits the run). Lock held."""
        run = self.spool.run(live.rid)
        return self._put(live, replace(run, updated_at=now(), **changes))

    def _put(self, live: LiveRun, run: Run) -> Run:
        self.spool.put_run(live.rid, run)
        self.version += 1
        return run

    def end(self, live: LiveRun, state: str, exit_code: int | None, summary: str | None = None) -> None:
        """The run is over, with its last summary if that came just now: this is durable now, its lines move to
        segments shortly. Lock held."""
        run = self.spool.run(live.rid)
        at = now()
        beat = run.heartbeat_at if state == "crashed" else at
        last = run.summary if summary is None else summary
        ended = replace(run, summary=last, state=state, exit_code=exit_code, updated_at=at, heartbeat_at=beat)
        self._put(live, ended)
        self._drain(live, final=True)

    def delete(self, live: LiveRun) -> None:
        """Serve the run no more; what it logged goes to segments, where its tombstone is. Lock held."""
        live.deleted = True
        self.version += 1
        self.end(live, "killed", None)

    # -- files --------------------------------------------------------------------------------------------

    def put_files(self, live: LiveRun, entries: Sequence[FileEntry]) -> None:
        """Add or replace entries of the run's file list; durable when this returns. Lock held."""
        self._append_files(live.rid, entries)
        live.files |= {e.name: e for e in entries}
        self._tell_drain(live)

    def drop_files(self, live: LiveRun, names: Sequence[str]) -> None:
        """Take entries out of the run's file list. Lock held."""
        self._append_lines(live.rid, [{"name": n, "gone": True} for n in names])
        for name in names:
            live.files.pop(name, None)
        self._tell_drain(live)

    def _tell_drain(self, live: LiveRun) -> None:
        """A drain under way has the file list of before: a newer document makes it leave the run open."""
        if live.draining:
            self.edit(live)

    def _append_files(self, rid: int, entries: Iterable[FileEntry]) -> None:
        dated = ((e, e.updated_at.isoformat() if e.updated_at else None) for e in entries)
        self._append_lines(rid, [{**e.__dict__, "updated_at": at} for e, at in dated])

    def _append_lines(self, rid: int, lines: list[dict[str, Any]]) -> None:
        data = b"".join(dumps(line) + b"\n" for line in lines)
        with explained("writing the live tail"):
            fd = os.open(self._files_path(rid), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                os.write(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)

    def _files_path(self, rid: int) -> Path:
        return files_path(self._layout, rid)

    # -- catalogues ---------------------------------------------------------------------------------------

    def catalogue(self, live: LiveRun) -> KeyCatalogue:
        """The key catalogue with every line so far."""
        with live.reading:
            for part in parts(self._lines(live, "history", live.catalogued)):
                live.catalogue.add(part)
                live.catalogued += len(part)
            return live.catalogue

    def _catalogued(self, live: LiveRun, first: int, cells: CellBatch) -> None:
        """Take rows into the key catalogue that it does not know of yet."""
        with live.reading:
            if live.catalogued < first + cells.rows:
                live.catalogue.add(cells, max(0, live.catalogued - first))
                live.catalogued = first + cells.rows

    def system_summary(self, live: LiveRun) -> str | None:
        """The last value of every system metric, as JSON."""
        with live.reading:
            for line in self._lines(live, "system", live.system_seen):
                live.system |= parse_row(line)
                live.system_seen += 1
            return dumps(live.system).decode() if live.system else None

    def _lines(self, live: LiveRun, stream: SpoolStream, start: int) -> Iterator[str]:
        try:
            if self.spool.count(live.rid, stream) > start:
                yield from self.spool.lines(live.rid, stream, start)
        except (KeyError, FileNotFoundError):  # drained and closed: a drain looks at all lines before it lets go
            return

    # -- into segments ------------------------------------------------------------------------------------

    def _drain(self, live: LiveRun, *, final: bool) -> None:
        """Have the lines moved to segments; `final` if the run has ended."""
        if live.draining:
            return  # what comes after it is drained when it is done
        live.draining = True

        def job(writer: Writer) -> None:
            with live.lock:
                if live.gone or not self._spooled(live.rid):
                    return
                sealed = self.spool.seal(live.rid)
            # The bulk is done without the lock, so that the run can go on logging.
            self.spool.put_rows(writer, live.rid, sealed, partial(self._catalogued, live), live.catalogued)
            with live.lock:
                run = self._put(
                    live,
                    replace(
                        self.spool.run(live.rid),
                        history_keys=live.catalogue.text(),
                        history_line_count=live.catalogued,
                        system_summary=self.system_summary(live),
                        events_line_count=live.system_seen,
                        log_line_count=self.spool.count(live.rid, "logs"),
                    ),
                )
                files = list(live.files.values())
                key = run.key
                place = Project(key.source, key.entity, key.project, created_at=run.created_at)
                writer.put_project(self._projects.setdefault((key.entity, key.project), place))
                done = self.spool.drain(writer, live.rid, sealed, final=final and run.state in ENDED)
            writer.put_files(key, files)
            if live.deleted:
                writer.tombstone(key)
            writer.after_commit(lambda: self._drained(live, key, done))

        def failed(done: Future[None]) -> None:
            if (error := done.exception()) is not None:
                live.draining = False
                print(f"run {live.rid} could not be moved to segments yet: {error}", file=sys.stderr)

        self._pen.submit(job).add_done_callback(failed)

    def _drained(self, live: LiveRun, key: RunKey, done: Callable[[], None]) -> None:
        """A drain is committed: forget the run if it is over, go on if more came meanwhile."""
        with live.lock:
            done()
            live.draining = False
            if not self._spooled(live.rid):
                self._forget(live, key)
            elif self.spool.run(live.rid).state in ENDED:
                self._drain(live, final=True)

    def _spooled(self, rid: int) -> bool:
        try:
            self.spool.run(rid)
        except KeyError:
            return False
        return True

    def _watching(self) -> None:
        pause = max(0.1, min(5.0, self._crash_after / 4))
        while not self._closing.wait(pause):
            for live in list(self._runs.values()):
                with live.lock:
                    if live.gone or live.draining or not self._spooled(live.rid):
                        continue
                    run = self.spool.run(live.rid)
                    if run.state in ENDED:  # its drain failed, e.g. for want of disk space
                        self._drain(live, final=True)
                    elif run.state in BEATING and time.time() - live.beat > self._crash_after:
                        self.end(live, "crashed", None)


def drained(place: Place) -> dict[SpoolStream, int]:
    """Lines of every stream that are in segments."""
    return {"history": place.history_rows, "system": place.system_rows, "logs": place.logs_rows}


def files_path(layout: Layout, rid: int) -> Path:
    return layout.live / str(rid) / "files.jsonl"


def cut_torn_line(path: Path) -> None:
    """Drop the end of a journal that a crash cut short; it was never acknowledged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
        os.truncate(path, whole)


def read_files(layout: Layout, rid: int) -> dict[str, FileEntry]:
    """The file list of a live run as it lies in its folder; a line without its end is not acknowledged yet."""
    try:
        data = files_path(layout, rid).read_bytes()
    except FileNotFoundError:
        return {}
    found: dict[str, FileEntry] = {}
    for line in data[: data.rfind(b"\n") + 1].splitlines():
        try:
            entry = orjson.loads(line)
        except orjson.JSONDecodeError:
            entry = json.loads(line)
        if entry.pop("gone", False):
            found.pop(entry["name"], None)
        else:
            at = entry["updated_at"]
            found[entry["name"]] = FileEntry(**entry | {"updated_at": datetime.fromisoformat(at) if at else None})
    return found
