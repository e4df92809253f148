"""A mirror as the server sees it: the newest snapshot, the live runs, and the changes it makes to both.

Every request looks through a `Look`: live documents first, then the newest snapshot, in this order. A run that
is drained between the two is then seen live with the documents it ended with, never as it was before.
"""

from __future__ import annotations

import secrets
import string
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirror.errors import AmbiguousError, UsageError
from mirror.records import FileEntry, Project, Run, RunKey
from mirror.server import ids
from mirror.server.index import Place
from mirror.server.live import ENDED, LiveRun, LiveRuns, drained, now, read_files
from mirror.server.shelf import EPOCH, Shelf, Shelves, Stored
from mirror.server.writing import WriterThread
from mirror.store import LOCAL_SOURCE, Layout, Spool, Writer
from mirror.store.live import last_version
from mirror.store.locks import FileLock

if TYPE_CHECKING:
    from mirror.server.small_runs import Rows

_RIDS_AT_A_TIME = 200
_ID_LETTERS = string.ascii_lowercase + string.digits


@dataclass(frozen=True)
class Found:
    """A run as a request sees it. `live` says that its lines are partly (or all) in the spool."""

    rid: int
    run: Run
    live: bool
    stored: Stored | None


class Look:
    """What one request sees."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.live = home.live_documents()
        self.live_version = home.live.version if home.live else 0
        self.together: list[Found] = []
        """Runs this request asked for at once, in order: their rows are best read at once too."""
        self.rows: dict[tuple[int, str], Rows] = {}
        """Rows that were read ahead of being asked for, until they are (`small_runs`)."""
        self._runs: dict[tuple[str, str, str], list[Found]] = {}

    @cached_property
    def shelf(self) -> Shelf:
        """The newest snapshot when it was first needed: never older than the live documents."""
        return self.home.shelves.newest()

    @cached_property
    def _live_names(self) -> dict[tuple[str, str, str], int]:
        return {(r.key.entity, r.key.project, r.key.run_id): rid for rid, r in self.live.items()}

    # -- runs ---------------------------------------------------------------------------------------------

    def prefetch(self, entity: str, project: str, run_ids: Iterable[str], *, whole: bool = False) -> None:
        """Look up many runs of a project at once, with their documents if `whole`."""
        wanted = [r for r in dict.fromkeys(run_ids) if (entity, project, r) not in self._runs]
        if not wanted:
            return
        for run_id in wanted:
            rid = self._live_names.get((entity, project, run_id))
            live = [] if rid is None else [Found(rid, self.live[rid], True, None)]
            self._runs[(entity, project, run_id)] = live
        if self.home.live and all(self._runs[(entity, project, r)] for r in wanted):
            return  # all are logging here, and no name is given to a run of this server that another source has
        index = self.shelf.index
        places = [p for name in wanted for p in index.find(entity, project, name) if p.rid not in self.live]
        for found in self._stored(places, whole):
            self._runs[(entity, project, found.run.key.run_id)].append(found)
            self.together.append(found)

    def has_run(self, entity: str, project: str, run_id: str) -> bool:
        return bool(self._runs.get((entity, project, run_id)))

    def run(self, entity: str, project: str, run_id: str) -> Found | None:
        """The run of that path; `AmbiguousError` if several sources have one."""
        self.prefetch(entity, project, [run_id])
        found = self._runs[(entity, project, run_id)]
        if len(found) > 1:
            sources = ", ".join(f"`{f.run.key.source}`" for f in found)
            raise AmbiguousError(
                f"`{entity}/{project}/{run_id}` names runs of several sources ({sources}): "
                "ask for it with `mirror sql` and a condition on source"
            )
        return found[0] if found else None

    def run_by_id(self, storage_id: str) -> Found | None:
        """The run that is served under this id."""
        elsewhere = ids.parse_mirrored_run_id(storage_id)
        if elsewhere is None:
            for rid, run in self.live.items():
                if run.key.storage_id == storage_id:
                    return Found(rid, run, True, None)
        place = self.shelf.index.find_id(*(elsewhere or (self.home.source, storage_id)))
        return next(iter(self._stored([place], True)), None) if place else None

    def whole(self, found: Found) -> Found:
        """The run with its documents."""
        if found.stored is None or found.stored.whole:
            return found
        again = self.runs([found.rid], whole=True)
        return again[0] if again else found

    def runs(self, rids: list[int], *, whole: bool = True) -> list[Found]:
        """Runs by rid, in this order; those that were deleted meanwhile are left out."""
        places = [p for rid in rids if rid not in self.live and (p := self.shelf.index.get(rid))]
        stored = {f.rid: f for f in self._stored(places, whole)}
        stored |= {rid: Found(rid, self.live[rid], True, None) for rid in rids if rid in self.live}
        return [stored[rid] for rid in rids if rid in stored]

    def _stored(self, places: list[Place], whole: bool) -> list[Found]:
        held = self.shelf.stored(places, whole=whole)
        return [Found(p.rid, held[p.rid].run, False, held[p.rid]) for p in places if p.rid in held]

    def listing(self, entity: str, project: str, condition: str, order: str) -> list[int]:
        """rids of a project's runs, by SQL condition and order over the view `runs`."""
        return self.shelf.listing(condition, order, entity, project, self._live_in(entity, project), self.live_version)

    def by_creation(self, entity: str, project: str) -> list[int]:
        """rids of all runs of a project, oldest first."""
        stored = self.shelf.by_creation(entity, project)
        if live := self._live_in(entity, project):
            stored = [run for run in stored if run[1] not in live]
            stored = sorted(stored + [(to_micros(r.created_at) or 0, rid) for rid, r in live.items()])
        return [rid for _, rid in stored]

    def _live_in(self, entity: str, project: str) -> dict[int, Run]:
        return {rid: r for rid, r in self.live.items() if (r.key.entity, r.key.project) == (entity, project)}

    # -- projects -----------------------------------------------------------------------------------------

    def entities(self) -> set[str]:
        return {*(p.entity for p in self.shelf.projects()), *(r.key.entity for r in self.live.values())}

    def has_project(self, entity: str, project: str) -> bool:
        return bool(
            self._live_in(entity, project)
            or self.shelf.by_creation(entity, project)
            or any((p.entity, p.name) == (entity, project) for p in self.shelf.projects())
        )

    def run_count(self, entity: str, project: str) -> int:
        """Runs of a project over all sources."""
        live = self._live_in(entity, project)
        new = sum(rid not in self.shelf.index.places for rid in live)
        return len(self.shelf.by_creation(entity, project)) + new

    def projects(self, entity: str, project: str | None = None) -> list[Project]:
        """An entity's projects by name, or one of them; the same name in several sources is one project here."""
        found: dict[str, Project] = {}
        for here in self.shelf.projects():
            if here.entity != entity or project not in (None, here.name):
                continue
            if (before := found.get(here.name)) is not None:
                here = replace(
                    before,
                    description=before.description or here.description,
                    created_at=min((c for c in (before.created_at, here.created_at) if c), default=None),
                )
            found[here.name] = here
        for run in self.live.values():
            if run.key.entity == entity and run.key.project not in found and project in (None, run.key.project):
                name = run.key.project
                found[name] = Project(run.key.source, entity, name, created_at=run.created_at)
        return [found[name] for name in sorted(found)]


class Home:
    """One served root. `read_only` opens nothing for writing and takes no lock."""

    def __init__(self, root: str | Path, *, read_only: bool, crash_after: float = 300.0, entity: str = "local") -> None:
        self.layout = Layout(root)
        self.read_only = read_only
        self.entity = entity
        self._creating = threading.Lock()
        self._rids: list[int] = []
        self._lock: FileLock | None = None
        self.pen: WriterThread | None = None
        self.live: LiveRuns | None = None
        if read_only:
            self.shelves = Shelves(self.layout)
            self.store_id = self.shelves.newest().snapshot.store_id
            self.source = _local_source(self.store_id)
            return
        self.pen = WriterThread(self.layout.root)
        self.store_id = self.pen.store_id
        self.source = _local_source(self.store_id)
        self._lock = FileLock(self.layout.live / "serve.lock")
        if not self._lock.acquire(wait=False):
            self.pen.close()
            raise UsageError(
                f"another `mirror serve` takes runs into `{self.layout.root}`: "
                "stop it, or start this one with --read-only"
            )
        self.shelves = Shelves(self.layout)
        self.live = LiveRuns(Spool(self.layout.root), self.pen, crash_after)
        self.live.start(self.shelves.newest())

    def close(self) -> None:
        if self.live:
            self.live.close()
        if self.pen:
            self.pen.close()
        if self._lock:
            self._lock.release()

    def look(self) -> Look:
        return Look(self)

    def live_documents(self) -> Mapping[int, Run]:
        if self.live:
            return self.live.documents()
        folders = (f for f in self.layout.live.iterdir() if f.name.isdigit()) if self.layout.live.is_dir() else ()
        found = {int(f.name): last_version(f) for f in folders}
        return {rid: run for rid, run in found.items() if run}

    # -- changing -----------------------------------------------------------------------------------------

    def writable(self) -> tuple[WriterThread, LiveRuns]:
        if self.pen is None or self.live is None:
            raise UsageError("this server is read-only (`mirror serve --read-only`): it takes no runs and no changes")
        return self.pen, self.live

    def create(self, run: Run) -> tuple[int, bool]:
        """Make the run live; returns its rid and whether it is new (another request may have been first)."""
        pen, live = self.writable()
        key = run.key
        with self._creating:
            rid = live.find(key.entity, key.project, key.run_id)
            if rid is not None:
                return rid, False
            self._refuse_taken(key)
            if not self._rids:
                self._rids = pen.do(lambda writer: [writer.reserve_rid() for _ in range(_RIDS_AT_A_TIME)])
            rid = self._rids.pop(0)
            # The spool makes the run durable; it reaches the tables when it is drained.
            live.open(rid, run, {}, {})
            return rid, True

    def _refuse_taken(self, key: RunKey) -> None:
        index = self.shelves.newest().index
        if index.find_deleted(key.source, key.entity, key.project, key.run_id):
            raise UsageError(
                f"run `{key.path}` was deleted; an id is not used twice: choose another one (`wandb.init(id=...)`)"
            )
        others = index.find(key.entity, key.project, key.run_id)
        if others:
            raise UsageError(
                f"`{key.path}` is a run mirrored from `{others[0].source}`: "
                "choose another id, project or entity to log here"
            )

    def new_key(self, entity: str, project: str, run_id: str | None) -> RunKey:
        """Who a new run will be."""
        run_id = run_id or "".join(secrets.choice(_ID_LETTERS) for _ in range(8))
        return RunKey(self.source, ids.new_run_id(entity, project, run_id), entity, project, run_id)

    def reopen(self, found: Found) -> None:
        """Make a run that had ended live again: its lines go on where they stopped."""
        _, live = self.writable()
        self.own(found)
        assert found.stored
        place = found.stored.place
        found = self.look().whole(found)
        run = replace(found.run, history_line_count=place.history_rows, events_line_count=place.system_rows)
        live.open(found.rid, run, drained(place), self.stored_files(self.shelves.newest(), found.rid))

    def own(self, found: Found) -> None:
        """Refuse to change a run of another source: a mirror holds what its source says."""
        if found.run.key.source != self.source:
            raise UsageError(
                f"run `{found.run.key.path}` is mirrored from `{found.run.key.source}` and cannot be changed here: "
                "change it there and sync again"
            )

    def edit(self, found: Found, changes: dict[str, Any]) -> None:
        """Change documents of a run without making it live."""
        pen, live = self.writable()
        self.own(found)
        changes = {name: value for name, value in changes.items() if getattr(found.run, name) != value}
        if not changes:
            return
        with live.held(found.rid) as held:
            if held is not None:
                live.edit(held, **changes)
                return

        def job(writer: Writer) -> None:
            current = self.look().runs([found.rid])
            if current:
                writer.put_run(replace(self.look().whole(current[0]).run, updated_at=now(), **changes))

        pen.do(job)

    def set_state(self, found: Found, state: str) -> None:
        """Requeue a run (`pending`) or give it up (`failed`)."""
        _, live = self.writable()
        self.own(found)
        with live.held(found.rid) as held:
            if held is not None:
                if state in ENDED:
                    live.end(held, state, None)
                else:
                    live.edit(held, state=state)
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
            "select name, size, md5, mimetype, updated_at, storage_id, url "
            f"from {shelf.relation('files', [rid])} where gen = {place.files_gen}"
        )
        return {row[0]: FileEntry(*row) for row in shelf.connect().execute(query).fetchall()}

    def put_files(self, found: Found, entries: list[FileEntry]) -> None:
        """Add or replace files of a run, live or ended; durable when this returns."""
        self._change_files(found, {e.name: e for e in entries})

    def drop_files(self, found: Found, names: list[str]) -> None:
        self._change_files(found, dict.fromkeys(names))

    def _change_files(self, found: Found, changes: Mapping[str, FileEntry | None]) -> None:
        pen, live = self.writable()
        self.own(found)
        added = [e for e in changes.values() if e is not None]
        gone = [name for name, e in changes.items() if e is None]
        with live.held(found.rid) as held:
            if held is not None:
                if added:
                    live.put_files(held, added)
                if gone:
                    live.drop_files(held, gone)
                return

        def job(writer: Writer) -> None:
            # Jobs that share a commit cannot see each other's manifests in the snapshot: commit between them.
            writer.commit()
            held = self.stored_files(self.shelves.newest(), found.rid)
            held |= {e.name: e for e in added}
            writer.put_files(found.run.key, [e for n, e in held.items() if n not in gone])

        pen.do(job)


def to_micros(at: datetime | None) -> int | None:
    return None if at is None else (at - EPOCH) // timedelta(microseconds=1)


def _local_source(store_id: str) -> str:
    """The source of runs logged to this mirror: unlike that of any other mirror."""
    return f"{LOCAL_SOURCE}-{store_id[:12]}"


__all__ = ["Found", "Home", "LiveRun", "Look"]
