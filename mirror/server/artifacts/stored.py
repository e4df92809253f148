"""Artifacts that are committed, by SQL over the newest snapshot. Nothing is kept in memory between questions.

A question reads the Parquet files of `artifacts` (a row per version), or the few of `artifact_entries` that hold the
wanted artifact. What is deleted stays in the tables and is found only where that is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mirror.errors import UsageError
from mirror.records import Artifact, ArtifactCollection, ArtifactEntry, ArtifactUse, ItemKey
from mirror.server.shelf import Shelf
from mirror.store.views import parquet

ALIVE = "deleted_at is null and coalesce(state, 'COMMITTED') = 'COMMITTED'"
_BATCH = 5000
_KEY = ("source", "storage_id", "entity", "project")
_OF_ARTIFACT = [f.name for f in fields(Artifact) if f.name not in ("key", "entries", "uses")]
_OF_COLLECTION = [f.name for f in fields(ArtifactCollection) if f.name != "key"]
_OF_ENTRY = [f.name for f in fields(ArtifactEntry)]
_VERSION = [*_KEY, *_OF_ARTIFACT]
_COLLECTION = [*_KEY, *_OF_COLLECTION]


@dataclass(frozen=True)
class Held:
    """A version of an artifact. Its entries and uses are asked for apart."""

    rid: int
    artifact: Artifact
    entries_gen: int
    uses_gen: int
    deleted: bool


@dataclass(frozen=True)
class HeldCollection:
    """A collection. `key.storage_id` is empty if only its versions are known."""

    rid: int
    collection: ArtifactCollection


class StoredArtifacts:
    """The artifacts of one snapshot."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    # -- versions -----------------------------------------------------------------------------------------

    def versions(
        self, condition: str, params: Sequence[Any] = (), *, order: str = "rid", limit: int | None = None
    ) -> list[Held]:
        """Versions that satisfy a SQL condition over the columns of `artifacts`."""
        names = ", ".join(f'"{n}"' for n in _VERSION)
        query = (
            f"select rid, entries_gen, uses_gen, deleted_at is not null, {names} from {self._live('artifacts')} "
            f"where {condition} order by {order}{'' if limit is None else f' limit {int(limit)}'}"
        )
        return [_held(row) for row in self._ask(query, params)]

    def rids(self, condition: str, params: Sequence[Any], order: str) -> list[int]:
        """The same as rids, for listings."""
        query = f"select rid from {self._live('artifacts')} where {condition} order by {order}, rid"
        return [rid for (rid,) in self._ask(query, params)]

    def by_rids(self, rids: Sequence[int]) -> list[Held]:
        """Versions in this order; those that are gone are left out."""
        if not rids:
            return []
        found = {h.rid: h for h in self.versions(f"rid in ({', '.join(map(str, rids))})")}
        return [found[rid] for rid in rids if rid in found and not found[rid].deleted]

    def find(self, source: str, storage_id: str) -> Held | None:
        """The version of that id, deleted or not."""
        return next(iter(self.versions("source = ? and storage_id = ?", (source, storage_id))), None)

    def find_anywhere(self, storage_id: str) -> Held | None:
        """The version of that id in any source, if only one has it: references name artifacts by their own ids."""
        found = self.versions(f"storage_id = ? and {ALIVE}", (storage_id,), limit=2)
        return found[0] if len(found) == 1 else None

    def named(self, entity: str, project: str, collection: str, alias: str) -> list[Held]:
        """Versions of that name (one for each source that has it), by alias or as `vN`."""
        where = f"entity = ? and project = ? and collection = ? and {ALIVE}"
        number = int(alias[1:]) if alias[:1] == "v" and alias[1:].isdecimal() and len(alias) < 10 else -1
        return self.versions(
            f"{where} and (list_contains(aliases, ?) or version = ?)", (entity, project, collection, alias, number)
        )

    def of_digest(self, source: str, sequence: Sequence[str], digest: str) -> Held | None:
        """The newest version of a collection that holds the same."""
        where = f"source = ? and entity = ? and project = ? and collection = ? and digest = ? and {ALIVE}"
        return next(iter(self.versions(where, (source, *sequence, digest), order="version desc", limit=1)), None)

    def newest(self, source: str, sequence: Sequence[str]) -> Held | None:
        where = f"source = ? and entity = ? and project = ? and collection = ? and {ALIVE}"
        return next(iter(self.versions(where, (source, *sequence), order="version desc", limit=1)), None)

    def next_number(self, source: str, sequence: Sequence[str]) -> int:
        """The number of the next version: those of deleted ones are not given again."""
        query = (
            f"select max(version) from {self._live('artifacts')} "
            "where source = ? and entity = ? and project = ? and collection = ?"
        )
        ((last,),) = self._ask(query, (source, *sequence))
        return 0 if last is None else int(last) + 1

    def with_aliases(self, source: str, sequence: Sequence[str], aliases: Iterable[str]) -> list[Held]:
        """The versions of a collection that have one of the aliases."""
        where = f"source = ? and entity = ? and project = ? and collection = ? and list_has_any(aliases, ?) and {ALIVE}"
        return self.versions(where, (source, *sequence, list(aliases)))

    def filtered(self, filters: str, rids: Sequence[int]) -> list[int]:
        """Those of the versions or collections that meet a filter, written as one of runs: over name, state, tags,
        createdAt and updatedAt. `UsageError` for others."""
        import duckdb

        from mirror.query.filters import to_sql

        chosen = f"rid in ({', '.join(map(str, rids)) or 'null'})"
        columns = "rid, collection as run_id, tags, created_at, updated_at"
        rows = (
            f"(select {columns}, coalesce(state, 'COMMITTED') as state from {self._live('artifacts')} where {chosen} "
            f"union all select {columns}, 'READY' from {self._live('artifact_collections')} where {chosen}) runs"
        )
        try:
            found = {rid for (rid,) in self._ask(f"select rid from {rows} where {to_sql(filters)}", ())}
        except duckdb.Error as exc:
            raise UsageError(
                f"the filter `{filters[:200]}` cannot be asked of artifacts: use name, state, tags, createdAt, "
                "updatedAt"
            ) from exc
        return [rid for rid in rids if rid in found]

    # -- collections --------------------------------------------------------------------------------------

    def collections(self, condition: str, params: Sequence[Any] = (), *, derived: bool = True) -> list[HeldCollection]:
        """Collections that satisfy a SQL condition over the columns of `artifact_collections`; with `derived` also
        those of which only versions are known."""
        table = self._collections() if derived else self._live("artifact_collections")
        known = condition if derived else f"deleted_at is null and {condition}"
        query = f"select rid, {', '.join(_COLLECTION)} from {table} where {known} order by rid"
        found = []
        for rid, *values in self._ask(query, params):
            row = dict(zip(_COLLECTION, values, strict=True))
            key = ItemKey(*(row.pop(name) for name in _KEY))
            found.append(HeldCollection(rid, ArtifactCollection(key, **row | {"tags": tuple(row["tags"] or ())})))
        return found

    def collection_rids(self, condition: str, params: Sequence[Any], order: str) -> list[int]:
        return [
            rid
            for (rid,) in self._ask(
                f"select rid from {self._collections()} where {condition} order by {order}, rid desc", params
            )
        ]

    def collection(self, entity: str, project: str, name: str) -> list[HeldCollection]:
        """Collections of that name, one for each source that has it."""
        where, path = "entity = ? and project = ? and collection = ?", (entity, project, name)
        return self.collections(where, path, derived=False) or self.collections(where, path)

    def types(self, entity: str, project: str) -> list[tuple[str, Any]]:
        """(type, when its first collection was made) of a project, by name."""
        query = (
            f"select type, min(created_at) from {self._collections()} where entity = ? and project = ? "
            "group by type order by type"
        )
        return [(row[0], row[1]) for row in self._ask(query, (entity, project))]

    def _collections(self) -> str:
        """Collections, with those of which a mirror has only versions."""
        artifacts = self._live("artifacts")
        return (
            f"(select rid, {', '.join(_COLLECTION)} from {self._live('artifact_collections')} where deleted_at is null "
            "union all select min(rid), source, '', entity, project, any_value(type), collection, null, [], "
            f"min(created_at), max(updated_at) from {artifacts} a where {ALIVE} and not exists (select 1 from "
            f"{self._live('artifact_collections')} c where c.source = a.source and c.entity = a.entity and "
            "c.project = a.project and c.collection = a.collection and c.deleted_at is null) "
            "group by source, entity, project, collection)"
        )

    # -- entries and uses ---------------------------------------------------------------------------------

    def entries(
        self, held: Held, *, names: Sequence[str] | None = None, after: str | None = None, limit: int = _BATCH
    ) -> list[ArtifactEntry]:
        """Entries of a version in the order of their paths, after the path `after`."""
        where, params = "true", list[Any]()
        if names is not None:
            where, params = "path in (select unnest(?))", [list(names)]
        if after is not None:
            where, params = f"{where} and path > ?", [*params, after]
        query = (
            f"select {', '.join(_OF_ENTRY)} from {self._shelf.relation('artifact_entries', [held.rid])} "
            f"where gen = {held.entries_gen} and {where} order by path limit {int(limit)}"
        )
        return [ArtifactEntry(*row) for row in self._ask(query, params)]

    def batches(self, held: Held) -> Iterator[list[ArtifactEntry]]:
        """All entries, a few thousand at a time."""
        after: str | None = None
        while batch := self.entries(held, after=after):
            yield batch
            after = batch[-1].path
            if len(batch) < _BATCH:
                return

    def bytes_of(self, entity: str, digests: Sequence[str]) -> dict[str, tuple[str, int]]:
        """md5 -> (sha256, size) of files that artifacts of the entity hold. Others' bytes cannot be had by knowing
        their digest."""
        query = (
            "select e.digest, any_value(e.sha256), any_value(e.size) "
            f"from {self._rows('artifact_entries')} e semi join "
            f"(select rid, entries_gen from {self._live('artifacts')} where entity = ? and deleted_at is null) a "
            "on a.rid = e.rid and a.entries_gen = e.gen "
            "where e.sha256 is not null and e.digest in (select unnest(?)) group by e.digest"
        )
        found: dict[str, tuple[str, int]] = {}
        for start in range(0, len(digests), 20_000):
            rows = self._ask(query, (entity, list(digests[start : start + 20_000])))
            found |= {digest: (sha256, size) for digest, sha256, size in rows}
        return found

    def uses(self, held: Held) -> list[ArtifactUse]:
        """The runs that used a version, in the order in which they said so."""
        query = (
            f"select entity, project, run_id, used_as from {self._shelf.relation('artifact_uses', [held.rid])} "
            f"where gen = {held.uses_gen}"
        )
        return [ArtifactUse(*row) for row in self._ask(query, ())]

    def used_by(self, entity: str, project: str, run_id: str) -> list[int]:
        """rids of the versions that a run used."""
        query = (
            f"select distinct a.rid from {self._rows('artifact_uses')} u join "
            f"(select rid, uses_gen from {self._live('artifacts')} where {ALIVE}) a on a.rid = u.rid "
            "and a.uses_gen = u.gen where u.entity = ? and u.project = ? and u.run_id = ? order by a.rid"
        )
        return [rid for (rid,) in self._ask(query, (entity, project, run_id))]

    # -- SQL ----------------------------------------------------------------------------------------------

    def _rows(self, table: str) -> str:
        held = self._shelf.snapshot.files(table)
        if not held:
            return f"(select * from shape.{table})"
        paths = [str(self._shelf.layout.root / f["path"]) for f in held]
        return f"({parquet(table, paths, [f['version'] for f in held])})"

    def _live(self, table: str) -> str:
        """The newest version of every row of a table of items."""
        rows = self._rows(table)
        if not self._shelf.snapshot.content["tables"].get(table, {"superseded": False})["superseded"]:
            return rows
        newest = f"(select rid, max(gen) as gen from {rows} group by rid)"
        return f"(select r.* from {rows} r semi join {newest} m on m.rid = r.rid and m.gen = r.gen)"

    def _ask(self, query: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._shelf.connect().execute(query, [_plain(p) for p in params]).fetchall()
        return found


def _plain(value: Any) -> Any:
    """Text that UTF-8 can hold: a name with half a character in it is no name of anything."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _held(row: Sequence[Any]) -> Held:
    rid, entries_gen, uses_gen, deleted, *values = row
    found = dict(zip(_VERSION, values, strict=True))
    key = ItemKey(*(found.pop(name) for name in _KEY))
    for name in ("aliases", "tags"):
        found[name] = tuple(found[name] or ())
    return Held(rid, Artifact(key, **found), entries_gen, uses_gen, bool(deleted))
