"""The artifacts of a project compared: versions in order, digests, entries by path and digest, aliases, metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mirror.errors import SourceError
from mirror.importers.references import REFERENCE, storage_id_of
from mirror.importers.versions import EXPORTS
from mirror.query.sql import dicts
from mirror.records import Artifact, ArtifactCollection, ArtifactEntry, ItemKey
from mirror.sources.wandb import WandbSource
from mirror.verify.findings import Findings, as_json
from mirror.verify.other import HeldProject, Other
from mirror.wandb.artifacts import Listed, fetch_artifact, fetch_entries, list_artifacts, list_collections
from mirror.wandb.client import Client
from mirror.wandb.transport import UnknownFields

if TYPE_CHECKING:
    from mirror.store import Reader

_NAMED = ("digest", "description", "size", "metadata")
_COLUMNS = "storage_id, collection, type, version, digest, aliases, tags, description, metadata, size"
_ENTRIES = "path, digest, size, ref"


def compare_artifacts(reader: Reader, held: HeldProject, other: Other, findings: Findings) -> None:
    """Elsewhere than at their origin, versions are compared in their order, since nobody can choose their numbers. The
    exports of histories that W&B makes by itself say again what rows say, and are left out."""
    is_origin, there = other.is_origin(held), other.place(held)
    db = reader.connect()
    query = (
        f"select {_COLUMNS} from artifacts where source = ? and entity = ? and project = ? and deleted_at is null "
        "and coalesce(state, 'COMMITTED') = 'COMMITTED' and type <> ? order by type, collection, version"
    )
    cursor = db.execute(query, [held.source, held.here.entity, held.here.project, EXPORTS])
    mine: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in dicts(cursor):
        mine.setdefault((row["type"], row["collection"]), []).append(row)
    where = held.here.path
    try:
        collections, listing = list_collections(other.source.client, there.entity, there.project)
        complete = listing.complete
        others: dict[tuple[str, str], list[Listed]] = {}

        def trouble(message: str) -> None:
            findings.doubt(where, f"artifacts: {message}")

        for page, page_is_complete in list_artifacts(other.source.client, collections, trouble):
            complete &= page_is_complete
            for one in page:
                if one.artifact.state in (None, "COMMITTED") and one.artifact.type != EXPORTS:
                    others.setdefault((one.artifact.type, one.artifact.collection), []).append(one)
    except SourceError as e:
        if mine or not isinstance(e.__cause__, UnknownFields):
            findings.doubt(where, f"artifacts could not be read: {e}")
        return
    if not complete:
        findings.doubt(where, "artifacts: the listing was cut off")
        return
    led = None if is_origin else _Led(reader, held.source, other.source.client)
    for name in sorted({*mine, *(others if is_origin else ())}):
        versions = sorted(others.get(name, []), key=lambda one: one.artifact.version or 0)
        _collection(reader, where, name, mine.get(name, []), versions, other.source, findings, led)


def _collection(
    reader: Reader,
    where: str,
    name: tuple[str, str],
    mine: list[dict[str, Any]],
    others: list[Listed],
    other: WandbSource,
    findings: Findings,
    led: _Led | None,
) -> None:
    is_origin = led is None
    for i in range(max(len(mine), len(others))):
        row = mine[i] if i < len(mine) else None
        one = others[i] if i < len(others) else None
        version = row["version"] if row is not None else one.artifact.version if one is not None else None
        place = f"{where}/{name[1]}:v{version}"
        if row is None or one is None:
            if row is not None or is_origin:
                findings.differ(place, "artifacts", **{"there" if row is None else "here": "the version"})
            if row is None and one is not None and is_origin and (a := one.artifact).run_id is not None:
                logged_by = f"{a.run_entity}/{a.run_project}/{a.run_id}"
                findings.doubt(logged_by, f"it logged an artifact that the mirror does not hold: {name[1]}:v{version}")
            continue
        findings.count(artifacts=1)
        _version(place, row, one.artifact, findings, is_origin)
        if one.manifest_url is None:
            findings.doubt(place, "artifacts: the server names no address of the manifest")
            continue
        held = reader.connect().execute(
            f"select {_ENTRIES} from artifact_entries where storage_id = ? and collection = ? and version = ?",
            [row["storage_id"], row["collection"], row["version"]],
        )
        try:
            entries = {entry.path: entry for entry in fetch_entries(other.client, one)}
            _entries(place, {r[0]: r[1:] for r in held.fetchall()}, entries, findings, led)
        except SourceError as e:
            findings.doubt(place, f"artifacts: {e}")


def _version(place: str, row: Mapping[str, Any], there: Artifact, findings: Findings, is_origin: bool) -> None:
    pairs: dict[str, tuple[Any, Any]] = {name: (row[name], getattr(there, name)) for name in _NAMED}
    pairs["metadata"] = (_document(row["metadata"]), _document(there.metadata))
    pairs["aliases"] = (sorted(row["aliases"] or ()), sorted(there.aliases))
    pairs["tags"] = (sorted(row["tags"] or ()), sorted(there.tags))
    if is_origin:
        pairs["version"] = (row["version"], there.version)
    for name, (mine, others) in pairs.items():
        if (mine or None) != (others or None):
            findings.differ(place, "artifacts", key=name, here=as_json(mine), there=as_json(others))


def _entries(
    place: str,
    mine: Mapping[str, tuple[Any, ...]],
    others: Mapping[str, ArtifactEntry],
    findings: Findings,
    led: _Led | None,
) -> None:
    for path in sorted({*mine, *others}):
        entry = others.get(path)
        here = mine.get(path)
        there = (entry.digest, entry.size, entry.ref) if entry is not None else None
        if here == there:
            continue
        if led is not None and here and there and here[:2] == there[:2] and led.same(here[2], there[2]):
            findings.count(references_that_lead_to_copies=1)
            continue
        sides = {name: as_json(list(side)) for name, side in (("here", here), ("there", there)) if side is not None}
        findings.differ(place, "artifact entries", key=path, **sides)
    findings.count(artifact_entries=len(mine))


class _Led:
    """References of entries to other artifacts, which name them by ids of their server. They lead to the same if the
    artifacts have the same digest, which is that of all they hold."""

    def __init__(self, reader: Reader, source: str, client: Client) -> None:
        self._db = reader.connect()
        self._source = source
        self._client = client
        self._here: dict[str, str | None] = {}
        self._there: dict[str, str | None] = {}

    def same(self, here: str | None, there: str | None) -> bool:
        ours, others = (REFERENCE.fullmatch(ref or "") for ref in (here, there))
        if ours is None or others is None or ours[2] != others[2]:
            return False
        digest = self._held(ours[1])
        return digest is not None and digest == self._shown(others[1])

    def _held(self, hexed: str) -> str | None:
        if hexed not in self._here:
            query = "select digest from artifacts where source = ? and storage_id = ?"
            found = self._db.execute(query, [self._source, storage_id_of(hexed)]).fetchone()
            self._here[hexed] = found[0] if found else None
        return self._here[hexed]

    def _shown(self, hexed: str) -> str | None:
        if hexed not in self._there:
            found = None
            if (storage_id := storage_id_of(hexed)) is not None:
                nobody = ArtifactCollection(ItemKey(self._client.source, storage_id, "", ""), "", "")
                found = fetch_artifact(self._client, nobody, storage_id)
            self._there[hexed] = found.digest if found else None
        return self._there[hexed]


def _document(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text
