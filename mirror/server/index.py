"""Which runs there are: who they are and where their data lies, in memory, for every run of the mirror.

A commit adds a few rows to the table `runs` and this index reads only those, so that a lookup costs microseconds
however often somebody commits. Documents and rows are never held here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow.compute as pc
import pyarrow.parquet as pq

from mirror.records import RunKey
from mirror.store.layout import Layout
from mirror.store.snapshot import Snapshot


class Place(NamedTuple):
    """A run in segments: its live version. The names are those of the table `runs`; `created_at` is in µs."""

    rid: int
    gen: int
    source: str
    storage_id: str
    entity: str
    project: str
    run_id: str
    metric_gen: int
    history_gen: int
    history_rows: int
    system_gen: int
    system_rows: int
    files_gen: int
    logs_gen: int
    logs_rows: int
    created_at: int | None
    deleted_at: int | None
    merged_into: int | None = None

    @property
    def key(self) -> RunKey:
        return RunKey(self.source, self.storage_id, self.entity, self.project, self.run_id)


_TIMES = ("created_at", "deleted_at")


@dataclass
class Index:
    """The runs of one snapshot. Never changed once made; `advanced` makes the next one, sharing what is the same."""

    files: frozenset[str] = frozenset()
    places: dict[int, Place] = field(default_factory=dict)
    _names: dict[tuple[str, str], dict[str, tuple[int, ...]]] = field(default_factory=dict)
    _storage_ids: dict[tuple[str, str], int] = field(default_factory=dict)

    def advanced(self, layout: Layout, snapshot: Snapshot) -> Index:
        """The index of a newer snapshot. After a compaction it is made from scratch."""
        paths = frozenset(f["path"] for f in snapshot.files("runs"))
        if paths == self.files:
            return self
        base = self if self.files <= paths else Index()
        made = Index(paths, dict(base.places), dict(base._names), dict(base._storage_ids))
        copied: set[tuple[str, str]] = set()
        for path in sorted(paths - base.files):
            for place in _read(layout, path):
                made._put(place, copied)
        return made

    def _put(self, place: Place, copied: set[tuple[str, str]]) -> None:
        before = self.places.get(place.rid)
        if before is not None and before.gen >= place.gen:
            return
        self.places[place.rid] = place
        if before is not None and before[2:7] == place[2:7]:
            return
        if before is not None:
            self._unname(before, copied)
        names = self._own(place, copied)
        names[place.run_id] = (*names.get(place.run_id, ()), place.rid)
        self._storage_ids[(place.source, place.storage_id)] = place.rid

    def _unname(self, place: Place, copied: set[tuple[str, str]]) -> None:
        names = self._own(place, copied)
        names[place.run_id] = tuple(rid for rid in names[place.run_id] if rid != place.rid)
        self._storage_ids.pop((place.source, place.storage_id), None)

    def _own(self, place: Place, copied: set[tuple[str, str]]) -> dict[str, tuple[int, ...]]:
        """The names of a project, as a copy that this index may change."""
        project = (place.entity, place.project)
        if project not in copied:
            copied.add(project)
            self._names[project] = dict(self._names.get(project, {}))
        return self._names[project]

    # -- asking -------------------------------------------------------------------------------------------

    def get(self, rid: int) -> Place | None:
        """The run, if it is there, not deleted, and no copy of another one."""
        found = self.places.get(rid)
        return found if found and found.deleted_at is None and found.merged_into is None else None

    def find(self, entity: str, project: str, run_id: str) -> list[Place]:
        """Runs of that path in all sources, deleted ones left out."""
        rids = self._names.get((entity, project), {}).get(run_id, ())
        return [place for rid in rids if (place := self.get(rid))]

    def find_deleted(self, source: str, entity: str, project: str, run_id: str) -> bool:
        rids = self._names.get((entity, project), {}).get(run_id, ())
        return any(self.places[r].deleted_at is not None and self.places[r].source == source for r in rids)

    def find_id(self, source: str, storage_id: str) -> Place | None:
        rid = self._storage_ids.get((source, storage_id))
        return None if rid is None else self.get(rid)

    def of_project(self, entity: str, project: str) -> list[Place]:
        """The runs of a project, deleted ones left out."""
        rids = (rid for rids in self._names.get((entity, project), {}).values() for rid in rids)
        return [place for rid in rids if (place := self.get(rid))]

    def projects(self) -> Iterable[tuple[str, str]]:
        """(entity, project) of every project that ever had a run."""
        return self._names.keys()


def _read(layout: Layout, path: str) -> Iterator[Place]:
    rows = pq.read_table(layout.root / path, columns=list(Place._fields))
    names = rows.column_names  # all but the last one in files of earlier releases
    columns: list[list[Any]] = []
    for name in names:
        column = rows[name]
        columns.append((pc.cast(column, "int64") if name in _TIMES else column).to_pylist())
    # The few texts that many runs share are held once.
    shared: dict[str, str] = {}
    for name in ("source", "entity", "project"):
        at = names.index(name)
        columns[at] = [shared.setdefault(text, text) for text in columns[at]]
    return (Place(*row) for row in zip(*columns, strict=True))
