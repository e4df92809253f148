"""The artifacts of a project compared: versions in order, digests, entries by path and digest, aliases, metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mirror.errors import SourceError
from mirror.records import Artifact, ArtifactEntry
from mirror.sources.wandb import WandbSource
from mirror.verify.findings import Findings, as_json
from mirror.wandb.artifacts import Listed, fetch_entries, list_artifacts, list_collections
from mirror.wandb.transport import UnknownFields

if TYPE_CHECKING:
    from mirror.store import Reader

_NAMED = ("digest", "description", "size", "metadata")
_COLUMNS = "storage_id, collection, type, version, digest, aliases, tags, description, metadata, size"
_ENTRIES = "path, digest, size, ref"

Place = tuple[str, str]


def compare_artifacts(
    reader: Reader,
    source: str,
    here: Place,
    there: Place,
    other: WandbSource,
    findings: Findings,
    *,
    same_server: bool,
) -> None:
    """`here` and `there` are the names of the project on either side. Elsewhere than at their source, versions are
    compared in their order, since nobody can choose their numbers; what W&B makes by itself (the tables of a run, its
    history) is compared like all others."""
    db = reader.connect()
    query = (
        f"select {_COLUMNS} from artifacts where source = ? and entity = ? and project = ? and deleted_at is null "
        "and coalesce(state, 'COMMITTED') = 'COMMITTED' order by type, collection, version"
    )
    cursor = db.execute(query, [source, *here])
    names = [column[0] for column in cursor.description]
    mine: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for values in cursor.fetchall():
        row = dict(zip(names, values, strict=True))
        mine.setdefault((row["type"], row["collection"]), []).append(row)
    where = "/".join(here)
    try:
        collections, _ = list_collections(other.client, *there)
        complete = True
        others: dict[tuple[str, str], list[Listed]] = {}

        def trouble(message: str) -> None:
            findings.doubt(where, f"artifacts: {message}")

        for page, page_is_complete in list_artifacts(other.client, collections, trouble):
            complete &= page_is_complete
            for one in page:
                if one.artifact.state in (None, "COMMITTED"):
                    others.setdefault((one.artifact.type, one.artifact.collection), []).append(one)
    except SourceError as e:
        if mine or not isinstance(e.__cause__, UnknownFields):
            findings.doubt(where, f"artifacts could not be read: {e}")
        return
    if not complete:
        findings.doubt(where, "artifacts: the listing was cut off")
        return
    for name in sorted({*mine, *(others if same_server else ())}):
        versions = sorted(others.get(name, []), key=lambda one: one.artifact.version or 0)
        _collection(reader, where, name, mine.get(name, []), versions, other, findings, same_server)


def _collection(
    reader: Reader,
    where: str,
    name: tuple[str, str],
    mine: list[dict[str, Any]],
    others: list[Listed],
    other: WandbSource,
    findings: Findings,
    same_server: bool,
) -> None:
    for i in range(max(len(mine), len(others))):
        row = mine[i] if i < len(mine) else None
        one = others[i] if i < len(others) else None
        version = row["version"] if row is not None else one.artifact.version if one is not None else None
        place = f"{where}/{name[1]}:v{version}"
        if row is None or one is None:
            if row is not None or same_server:
                findings.differ(place, "artifacts", **{"there" if row is None else "here": "the version"})
            continue
        findings.count(artifacts=1)
        _version(place, row, one.artifact, findings, same_server)
        if one.manifest_url is None:
            findings.doubt(place, "artifacts: the server names no address of the manifest")
            continue
        try:
            entries = {entry.path: entry for entry in fetch_entries(other.client, one)}
        except SourceError as e:
            findings.doubt(place, f"artifacts: {e}")
            continue
        held = reader.connect().execute(
            f"select {_ENTRIES} from artifact_entries where storage_id = ? and collection = ? and version = ?",
            [row["storage_id"], row["collection"], row["version"]],
        )
        _entries(place, {r[0]: r[1:] for r in held.fetchall()}, entries, findings, same_server)


def _version(place: str, row: Mapping[str, Any], there: Artifact, findings: Findings, same_server: bool) -> None:
    pairs: dict[str, tuple[Any, Any]] = {name: (row[name], getattr(there, name)) for name in _NAMED}
    pairs["metadata"] = (_document(row["metadata"]), _document(there.metadata))
    pairs["aliases"] = (sorted(row["aliases"] or ()), sorted(there.aliases))
    pairs["tags"] = (sorted(row["tags"] or ()), sorted(there.tags))
    if same_server:
        pairs["version"] = (row["version"], there.version)
    for name, (mine, others) in pairs.items():
        if (mine or None) != (others or None):
            findings.differ(place, "artifacts", key=name, here=as_json(mine), there=as_json(others))


def _entries(
    place: str,
    mine: Mapping[str, tuple[Any, ...]],
    others: Mapping[str, ArtifactEntry],
    findings: Findings,
    same_server: bool,
) -> None:
    elsewhere = 0
    for path in sorted({*mine, *others}):
        entry = others.get(path)
        here = mine.get(path)
        there = (entry.digest, entry.size, entry.ref) if entry is not None else None
        if here == there:
            continue
        if not same_server and here and there and _points_into_wandb(here[2]) and _points_into_wandb(there[2]):
            elsewhere += 1
            continue
        sides = {name: as_json(list(side)) for name, side in (("here", here), ("there", there)) if side is not None}
        findings.differ(place, "artifact entries", key=path, **sides)
    findings.count(artifact_entries=len(mine))
    if elsewhere:
        findings.doubt(place, f"artifacts: {elsewhere} references to other artifacts name ids of their server")


def _points_into_wandb(ref: str | None) -> bool:
    return ref is not None and ref.startswith("wandb-artifact://")


def _document(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except ValueError:
        return text
