"""The ids by which rows name artifacts before a server has numbered them, found out from what a mirror holds.

A client makes an id up for every artifact it logs, and what is logged with it names the artifact by that id, as in
`wandb-client-artifact://<id>/t.table.json` (wandb 0.31): tables, joined and incremental tables, and any media that was
put into an artifact of the run. The server keeps the ids but tells no one; a copy that is made under the same ids is
found by everything that names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mirror.importers.places import Namespace
from mirror.query.sql import asking
from mirror.wandb.artifact_writing import client_id

if TYPE_CHECKING:
    from mirror.store import Reader

RUN_TABLE = "run_table"
"""The type of the artifacts that the SDK logs tables of a run as."""

Ids = tuple[str, str]
"""A client's ids for a version and for its collection; the second is empty where nothing tells it."""


def own_ids(source: str, storage_id: str, here: Namespace, destination: str, there: Namespace, collection: str) -> Ids:
    """The ids under which a version of a collection of `here` is sent to `there`; known before it is sent."""
    place = (destination, there.entity, there.project, collection)
    return client_id(source, storage_id, *place), client_id(source, here.entity, here.project, *place)


class ClientIds:
    """Which artifacts of a project its rows and summaries name by such ids.

    The ids that name one path follow in the order of rows, and so do the versions their run logged that hold a file
    there, where it says which is whose: an id for each version, or one for each content, since what was logged before
    is no new version. Where numbers do not agree nobody can tell, and no artifact is said to have the id.
    """

    def __init__(self, reader: Reader, source: str, here: Namespace) -> None:
        self._of: dict[str, list[Ids]] = {}
        with asking(reader) as connection:
            where = [source, here.entity, here.project]
            named = connection.execute(_NAMED, where).fetchall()
            held = connection.execute(_HELD, where).fetchall() if named else []
        ids: dict[tuple[str, str], dict[str, str]] = {}
        sequences: dict[str, str] = {}
        for run_id, own, path, content, sequence in named:
            ids.setdefault((run_id, path), {}).setdefault(own, content or own)
            if sequence or own not in sequences:
                sequences[own] = sequence or ""
        versions: dict[tuple[str, str], list[tuple[str, str, str, str, int]]] = {}
        for run_id, path, *version in held:
            if (run_id, path) in ids:
                versions.setdefault((run_id, path), []).append(tuple(version))
        found: dict[str, set[str]] = {}
        for place, contents in ids.items():
            for own, storage_id in _told(contents, versions.get(place, [])).items():
                found.setdefault(own, set()).add(storage_id)
        for own, artifacts in found.items():
            if len(artifacts) == 1:
                self._of.setdefault(artifacts.pop(), []).append((own, sequences[own]))
        self.known = {own for held_ids in self._of.values() for own, _ in held_ids}

    def of(self, storage_id: str) -> Sequence[Ids]:
        """The ids that rows have for a version; none if no row names it."""
        return self._of.get(storage_id, ())


def _told(contents: dict[str, str], held: Sequence[tuple[str, str, str, str, int]]) -> dict[str, str]:
    """Id -> storage id. `contents` are the ids for one path of one run, in order, each with what tells contents apart;
    `held` (storage id, digest, type, collection, version) the versions that hold the path, in order."""
    slots: list[tuple[str | None, str]] = []
    for storage_id, digest, kind, collection, version in held:
        if kind == RUN_TABLE and len({h[3] for h in held}) == 1:
            # No other run logs to this collection, so a number that is missing was deleted.
            slots += [(None, f"{collection}:{n}") for n in range(len(slots), version)]
        slots.append((storage_id, digest))
    first: dict[str, str | None] = {}
    for slot, digest in slots:
        first.setdefault(digest, slot)
    firsts, groups = list(first.values()), list(dict.fromkeys(contents.values()))
    if len(contents) == len(slots):
        told = dict(zip(contents, (slot for slot, _ in slots), strict=True))
    elif len(groups) == len(firsts):
        told = {own: firsts[groups.index(content)] for own, content in contents.items()}
    else:
        return {}
    return {own: storage_id for own, storage_id in told.items() if storage_id is not None}


_NAMED = r"""
select run_id, regexp_extract(named, '^wandb-client-artifact://([0-9A-Za-z]+)/', 1) as own,
       regexp_extract(named, '^wandb-client-artifact://[0-9A-Za-z]+/(.*)$', 1, 's') as path, content,
       nullif(regexp_extract(latest, '^wandb-client-artifact://([0-9A-Za-z]+):latest/', 1), '') as sequence
from (
  select l.run_id, c.rid, c.stream, c.row, json_extract_string(c.j, '$.sha256') as content,
         json_extract_string(c.j, '$._latest_artifact_path') as latest,
         unnest(list_concat([json_extract_string(c.j, '$.artifact_path')],
                            coalesce(json_extract_string(c.j, '$.filenames[*]'), []))) as named
  from raw.typed_cells c join raw.live l on l.rid = c.rid
  where l.source = ? and l.entity = ? and l.project = ? and contains(c.j, 'wandb-client-artifact://')
)
where own <> '' order by rid, stream, row
"""
_HELD = """
select a.run_id, e.path, a.storage_id, e.digest, a.type, a.collection, a.version
from raw.artifact_entries e join raw.artifacts_live a on a.rid = e.rid and a.entries_gen = e.gen
where a.source = ? and a.entity = ? and a.project = ? and a.run_entity = a.entity and a.run_project = a.project
  and a.deleted_at is null and a.state = 'COMMITTED' and a.version is not null and e.ref is null
  and e.path like '%.json' order by a.created_at, a.collection, a.version
"""
