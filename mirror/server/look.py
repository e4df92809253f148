"""What one request sees: live documents first, then the newest snapshot, in this order. Things in entities that are
closed to whoever asks are left out here, wherever they are looked up.

A run that is drained between the two is then seen live with the documents it ended with, never as it was before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from mirror.errors import AmbiguousError
from mirror.records import Project, Run
from mirror.server import ids
from mirror.server.access.asker import Asker
from mirror.server.index import Place
from mirror.server.shelf import EPOCH, Shelf, Stored

if TYPE_CHECKING:
    from mirror.server.history.small_runs import Rows
    from mirror.server.home import Home


@dataclass(frozen=True)
class Found:
    """A run as a request sees it. `live` says that its lines are partly (or all) in the spool."""

    rid: int
    run: Run
    live: bool
    stored: Stored | None


class Look:
    """What one request sees."""

    def __init__(self, home: Home, asker: Asker) -> None:
        self.home = home
        self.asker = asker
        # The version is asked for first: documents may be newer than it says, never older.
        self.live_version = home.live_version()
        self._all_live = home.live_documents()
        self.live = self._all_live
        if asker.entities is not None:
            self.live = {rid: run for rid, run in self.live.items() if asker.sees(run.key.entity)}
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

    def sees(self, entity: str) -> bool:
        """Whether whoever asks may see what is in this entity."""
        return self.asker.sees(entity)

    # -- runs ---------------------------------------------------------------------------------------------

    def prefetch(self, entity: str, project: str, run_ids: Iterable[str], *, whole: bool = False) -> None:
        """Look up many runs of a project at once, with their documents if `whole`."""
        wanted = [r for r in dict.fromkeys(run_ids) if (entity, project, r) not in self._runs]
        if not wanted:
            return
        if not self.sees(entity):
            self._runs |= {(entity, project, run_id): [] for run_id in wanted}
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
        places = [p for p in places if self.sees(p.entity)]
        held = self.shelf.stored(places, whole=whole)
        return [Found(p.rid, held[p.rid].run, False, held[p.rid]) for p in places if p.rid in held]

    def listing(self, entity: str, project: str, condition: str, order: str) -> list[int]:
        """rids of a project's runs, by SQL condition and order over the view `runs`."""
        if not self.sees(entity):
            return []
        # The tables made for this version are kept for other requests, which may see more of them.
        live = self._all_live if self._live_in(entity, project) else {}
        return self.shelf.listing(condition, order, entity, project, live, self.live_version)

    def by_creation(self, entity: str, project: str) -> list[int]:
        """rids of all runs of a project, oldest first."""
        if not self.sees(entity):
            return []
        stored = self.shelf.by_creation(entity, project)
        if live := self._live_in(entity, project):
            stored = [run for run in stored if run[1] not in live]
            stored = sorted(stored + [(to_micros(r.created_at) or 0, rid) for rid, r in live.items()])
        return [rid for _, rid in stored]

    def _live_in(self, entity: str, project: str) -> dict[int, Run]:
        return {rid: r for rid, r in self.live.items() if (r.key.entity, r.key.project) == (entity, project)}

    # -- projects -----------------------------------------------------------------------------------------

    def entities(self) -> set[str]:
        """Entities that hold something, as far as whoever asks may see them."""
        found = {*(p.entity for p in self.shelf.projects()), *(r.key.entity for r in self.live.values())}
        return {name for name in found if self.sees(name)}

    def has_project(self, entity: str, project: str) -> bool:
        return self.sees(entity) and bool(
            self._live_in(entity, project)
            or self.shelf.by_creation(entity, project)
            or any((p.entity, p.name) == (entity, project) for p in self.shelf.projects())
        )

    def run_count(self, entity: str, project: str) -> int:
        """Runs of a project over all sources."""
        if not self.sees(entity):
            return 0
        live = self._live_in(entity, project)
        new = sum(rid not in self.shelf.index.places for rid in live)
        return len(self.shelf.by_creation(entity, project)) + new

    def projects(self, entity: str, project: str | None = None) -> list[Project]:
        """An entity's projects by name, or one of them; the same name in several sources is one project here."""
        found: dict[str, Project] = {}
        for here in self.shelf.projects():
            if here.entity != entity or not self.sees(entity) or project not in (None, here.name):
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


def to_micros(at: datetime | None) -> int | None:
    return None if at is None else (at - EPOCH) // timedelta(microseconds=1)
