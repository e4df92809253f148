"""A served mirror: its snapshots, its live runs, and the changes a server makes to both.

A run is changed in one of two places: in the spool while it is live, through the writer when it is not. It moves
between them under `_moving`, so that no change is made in the place that a run has just left.
"""

from __future__ import annotations

import secrets
import string
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mirror.errors import UsageError
from mirror.records import FileEntry, Run, RunKey
from mirror.server import ids
from mirror.server.access.asker import EVERYTHING, asker, check_entity
from mirror.server.history.ahead import ReadAhead
from mirror.server.live import ENDED, LiveRun, LiveRuns, drained, now, read_files
from mirror.server.look import Found, Look
from mirror.server.shelf import Shelf, Shelves
from mirror.server.upkeep import Upkeep
from mirror.server.writing import WriterThread
from mirror.store import LOCAL_SOURCE, Layout, Spool, Writer
from mirror.store.live import last_version
from mirror.store.locks import FileLock

_RIDS_AT_A_TIME = 200
_ID_LETTERS = string.ascii_lowercase + string.digits


class Home:
    """One served root. `read_only` opens nothing for writing and takes no lock."""

    def __init__(self, root: str | Path, *, read_only: bool, crash_after: float = 300.0, entity: str = "local") -> None:
        self.layout = Layout(root)
        self.read_only = read_only
        self.entity = entity
        self._creating = threading.Lock()
        self._moving = threading.RLock()
        self._rids: list[int] = []
        self._lock: FileLock | None = None
        self.pen: WriterThread | None = None
        self.live: LiveRuns | None = None
        self._upkeep: Upkeep | None = None
        self.ahead = ReadAhead()
        if read_only:
            self.shelves = Shelves(self.layout)
            self.store_id = self.shelves.newest().snapshot.store_id
            self.source = _local_source(self.store_id)
            return
        self.pen = WriterThread(self.layout.root)
        self.store_id = self.pen.store_id
        self.source = _local_source(self.store_id)
        self._lock = FileLock(self.layout.serve_lock)
        if not self._lock.acquire(wait=False):
            self.pen.close()
            raise UsageError(
                f"another `mirror serve` takes runs into `{self.layout.root}`: "
                "stop it, or start this one with --read-only"
            )
        self.shelves = Shelves(self.layout)
        self.live = LiveRuns(Spool(self.layout.root), self.pen, crash_after)
        self.live.start(self.shelves.newest())
        self._upkeep = Upkeep(self.layout.root)

    def close(self) -> None:
        if self._upkeep:
            self._upkeep.close()
        if self.live:
            self.live.close()
        if self.pen:
            self.pen.close()
        if self._lock:
            self._lock.release()

    def look(self) -> Look:
        """What whoever asks now may see. `LookupError` if nobody does."""
        return Look(self, asker())

    def whole_look(self) -> Look:
        """Everything, for the server's own work."""
        return Look(self, EVERYTHING)

    def find_live(self, entity: str, project: str, run_id: str) -> int | None:
        """The rid of a live run that whoever asks may see."""
        _, live = self.writable()
        return live.find(entity, project, run_id) if asker().sees(entity) else None

    def live_version(self) -> int:
        """Changes whenever documents of live runs do."""
        return self.live.version if self.live else hash(tuple(self._live_files()))

    def live_documents(self) -> Mapping[int, Run]:
        """rid -> latest documents of every live run; in a read-only server, of those another one takes in."""
        if self.live:
            return self.live.documents()
        found = {int(path.parent.name): last_version(path.parent) for path, _, _ in self._live_files()}
        return {rid: run for rid, run in found.items() if run}

    def _live_files(self) -> list[tuple[Path, int, int]]:
        found = []
        for path in sorted(self.layout.live.glob("*/run.jsonl")):
            with suppress(FileNotFoundError):  # drained this moment
                stat = path.stat()
                found.append((path, stat.st_size, stat.st_mtime_ns))
        return [entry for entry in found if entry[0].parent.name.isdigit()]

    # -- changing -----------------------------------------------------------------------------------------

    def writable(self) -> tuple[WriterThread, LiveRuns]:
        if self.pen is None or self.live is None:
            raise UsageError("this server is read-only (`mirror serve --read-only`): it takes no runs and no changes")
        return self.pen, self.live

    def create(self, run: Run) -> tuple[int, bool]:
        """Make the run live; returns its rid and whether it is new (another request may have been first)."""
        pen, live = self.writable()
        key = run.key
        check_entity(key.entity)
        with self._creating:
            rid = live.find(key.entity, key.project, key.run_id)
            if rid is not None:
                return rid, False
            if (rid := self._taken(key)) is not None:
                return rid, False
            if not self._rids:
                self._rids = pen.do(lambda writer: [writer.reserve_rid() for _ in range(_RIDS_AT_A_TIME)])
            rid = self._rids.pop(0)
            # The spool makes the run durable; it reaches the tables when it is drained.
            live.open(rid, run, {}, {})
            return rid, True

    def _taken(self, key: RunKey) -> int | None:
        """The rid of the run of this server that has this path already; refuses paths that cannot be had."""
        index = self.shelves.newest().index
        if index.find_deleted(key.source, key.entity, key.project, key.run_id):
            raise UsageError(
                f"run `{key.path}` was deleted; an id is not used twice: choose another one (`wandb.init(id=...)`)"
            )
        for held in index.find(key.entity, key.project, key.run_id):
            if held.source == key.source:
                return held.rid
            raise UsageError(
                f"`{key.path}` is a run mirrored from `{held.source}`: choose another id, project or entity to log here"
            )
        return None

    def new_key(self, entity: str, project: str, run_id: str | None) -> RunKey:
        """Who a new run will be."""
        run_id = run_id or "".join(secrets.choice(_ID_LETTERS) for _ in range(8))
        return RunKey(self.source, ids.new_run_id(entity, project, run_id), entity, project, run_id)

    def reopen(self, found: Found) -> None:
        """Make a run that had ended live again: its lines go on where they stopped."""
        _, live = self.writable()
        self.own(found)
        with self._moving:
            look = self.whole_look()
            current = look.runs([found.rid])
            if not current or current[0].stored is None:
                return  # deleted, or live again
            place = current[0].stored.place
            run = replace(current[0].run, history_line_count=place.history_rows, events_line_count=place.system_rows)
            live.open(found.rid, run, drained(place), self.stored_files(look.shelf, found.rid))

    def _change(
        self, found: Found, in_spool: Callable[[LiveRuns, LiveRun], None], in_segments: Callable[[Writer, Look], None]
    ) -> None:
        """Change a run where it is now; durable when this returns."""
        pen, live = self.writable()
        self.own(found)
        with live.held(found.rid) as held:
            if held is not None:
                in_spool(live, held)
                return

        def job(writer: Writer) -> None:
            # What jobs before this one have put must be in the snapshot that this one goes by.
            writer.commit()
            with self._moving:
                with live.held(found.rid) as held:
                    if held is not None:
                        in_spool(live, held)
                        return
                in_segments(writer, self.whole_look())
                writer.commit()

        pen.do(job)

    def own(self, found: Found) -> None:
        """Refuse to change a run of another source: a mirror holds what its source says."""
        if found.run.key.source != self.source:
            raise UsageError(
                f"run `{found.run.key.path}` is mirrored from `{found.run.key.source}` and cannot be changed here: "
                "change it there and sync again"
            )

    def edit(self, found: Found, changes: dict[str, Any]) -> None:
        """Change documents of a run without making it live."""
        changes = {name: value for name, value in changes.items() if getattr(found.run, name) != value}

        def in_spool(live: LiveRuns, held: LiveRun) -> None:
            live.edit(held, **changes)
            if (state := changes.get("state")) in ENDED:
                live.end(held, state, found.run.exit_code)

        def in_segments(writer: Writer, look: Look) -> None:
            for current in look.runs([found.rid]):
                writer.put_run(replace(current.run, updated_at=now(), **changes))

        self.own(found)
        if changes:
            self._change(found, in_spool, in_segments)

    def set_state(self, found: Found, state: str) -> None:
        """Requeue a run (`pending`) or give it up (`failed`)."""
        _, live = self.writable()
        self.own(found)
        with live.held(found.rid) as held:
            if held is not None and state in ENDED:
                live.end(held, state, None)
                return
        self.edit(found, {"state": state})

    def delete(self, found: Found) -> None:
        """Forget a run: it is not served any more and its id is not used again."""
        pen, live = self.writable()
        self.own(found)
        with live.held(found.rid) as held:
            if held is not None:
                live.delete(held)
        pen.do(lambda writer: writer.tombstone(found.run.key))

    # -- files --------------------------------------------------------------------------------------------

    def files(self, look: Look, found: Found) -> dict[str, FileEntry]:
        """A run's file list by name."""
        if found.live:
            if self.live is None:
                return read_files(self.layout, found.rid)
            with self.live.held(found.rid) as held:
                if held is not None:
                    return dict(held.files)
        return self.stored_files(self.shelves.newest() if found.live else look.shelf, found.rid)

    def stored_files(self, shelf: Shelf, rid: int) -> dict[str, FileEntry]:
        place = shelf.index.get(rid)
        if place is None:
            return {}
        query = (
            "select name, size, md5, mimetype, updated_at, storage_id, url, sha256 "
            f"from {shelf.relation('files', [rid])} where gen = {place.files_gen}"
        )
        return {row[0]: FileEntry(*row) for row in shelf.connect().execute(query).fetchall()}

    def put_files(self, found: Found, entries: list[FileEntry]) -> None:
        """Add or replace files of a run, live or ended; durable when this returns."""
        self._change_files(found, {e.name: e for e in entries})

    def drop_files(self, found: Found, names: list[str]) -> None:
        self._change_files(found, dict.fromkeys(names))

    def _change_files(self, found: Found, changes: Mapping[str, FileEntry | None]) -> None:
        added = [e for e in changes.values() if e is not None]
        gone = [name for name, e in changes.items() if e is None]

        def in_spool(live: LiveRuns, held: LiveRun) -> None:
            if added:
                live.put_files(held, added)
            if gone:
                live.drop_files(held, gone)

        def in_segments(writer: Writer, look: Look) -> None:
            manifest = self.stored_files(look.shelf, found.rid) | {e.name: e for e in added}
            writer.put_files(found.run.key, [e for n, e in manifest.items() if n not in gone])

        self._change(found, in_spool, in_segments)


def _local_source(store_id: str) -> str:
    """The source of runs logged to this mirror: unlike that of any other mirror."""
    return f"{LOCAL_SOURCE}-{store_id[:12]}"
