"""Artifacts compared: versions in order, digests, entries by path and digest, aliases, metadata, and lineage."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mirror.errors import MirrorError, SourceError
from mirror.importers.places import Namespace, RunName
from mirror.importers.references import REFERENCE, storage_id_of
from mirror.importers.versions import EXPORTS, MADE, MirroredArtifact, collections_of, entries_of, versions_of
from mirror.records import Artifact, ArtifactCollection, ArtifactEntry, ItemKey
from mirror.verify.findings import Findings, as_json, plain
from mirror.verify.lineage import is_of_another_source, places_of, runs_that_used
from mirror.verify.other import HeldProject, Other
from mirror.wandb.artifacts import Listed, fetch_artifact, fetch_entries, list_artifacts, list_collections
from mirror.wandb.client import Client
from mirror.wandb.transport import UnknownFields

if TYPE_CHECKING:
    from mirror.store import Reader

_NAMED = ("digest", "description", "size")
_TOLD = ("ttl_seconds", "history_step")
"""What not every server tells of a copy that was not told it."""


def compare_artifacts(reader: Reader, held: HeldProject, other: Other, findings: Findings) -> None:
    """Compare the artifacts of a project where all its runs are meant, and those that its runs logged elsewhere; of
    some runs, those that these logged or used. Elsewhere than at their origin, versions are known by their digests and
    must stand in their order, since nobody can choose their numbers. The exports of histories that W&B makes by itself
    say again what rows say, and are left out."""
    runs = {(held.here.entity, held.here.project, str(row["run_id"])) for row in held.runs}
    for here in places_of(reader, held):
        own = held.whole and here == held.here
        versions = versions_of(reader, held.source, here)
        mine = [m for m in versions if own or not runs.isdisjoint(_runs_of(m.artifact, used=not held.whole))]
        _Project(reader, held.source, here, other, findings, whole=own).compare(mine)


def _runs_of(artifact: Artifact, *, used: bool) -> set[RunName]:
    """The runs that logged a version, and with `used` those that used it."""
    found = {(u.entity, u.project, u.run_id) for u in artifact.uses or () if used}
    if artifact.run_id is not None:
        found.add((artifact.run_entity or "", artifact.run_project or "", artifact.run_id))
    return found


class _Project:
    """The comparison of one project. `whole` says that all of its versions are meant."""

    def __init__(
        self, reader: Reader, source: str, here: Namespace, other: Other, findings: Findings, *, whole: bool
    ) -> None:
        held = HeldProject(source, here, [], whole)
        self._reader = reader
        self._source = source
        self._here = here
        self._other = other
        self._client = other.source.client
        self._findings = findings
        self._whole = whole
        self._is_origin = other.is_origin(held)
        self._there = other.place(held)
        self._led = None if self._is_origin else _Led(reader, source, self._client)

    def compare(self, mine: Sequence[MirroredArtifact]) -> None:
        sequences: dict[tuple[str, str], list[MirroredArtifact]] = {}
        for m in mine:
            sequences.setdefault((m.artifact.type, m.artifact.collection), []).append(m)
        if not (sequences or self._whole):
            return
        more = self._whole and self._is_origin
        found = self._listed(None if more else sequences.keys(), bool(mine))
        if found is None:
            return
        collections, others = found
        if self._whole:
            self._collections(collections, {name for _, name in sequences})
        for name in sorted({*sequences, *(others if more else ())}):
            versions = sorted(others.get(name, []), key=lambda one: one.artifact.version or 0)
            self._sequence(sequences.get(name, []), versions)

    def _listed(
        self, wanted: Collection[tuple[str, str]] | None, needed: bool
    ) -> tuple[list[ArtifactCollection], dict[tuple[str, str], list[Listed]]] | None:
        """The collections there and the versions of those that are wanted; None if they cannot be told."""
        where, complete = self._here.path, True

        def trouble(message: str) -> None:
            self._findings.doubt(where, f"artifacts: {message}")

        others: dict[tuple[str, str], list[Listed]] = {}
        try:
            collections, listing = list_collections(self._client, self._there.entity, self._there.project)
            asked = [c for c in collections if c.type != EXPORTS]
            if wanted is not None:
                asked = [c for c in asked if (c.type, c.collection) in wanted]
            for page, page_is_complete in list_artifacts(self._client, asked, trouble):
                complete &= page_is_complete
                for one in page:
                    if one.artifact.state in (None, "COMMITTED"):
                        others.setdefault((one.artifact.type, one.artifact.collection), []).append(one)
        except SourceError as e:
            if needed or not isinstance(e.__cause__, UnknownFields):
                trouble(f"could not be read: {e}")
            return None
        if not (complete and listing.complete):
            trouble("the listing was cut off")
            return None
        return collections, others

    def _collections(self, there: Sequence[ArtifactCollection], sent: Collection[str]) -> None:
        """Descriptions and tags of collections; elsewhere than at their origin of those that have versions, and more
        tags are no difference there."""
        shown = {c.collection: c for c in there if c.type != EXPORTS}
        mine = {
            name: (description or "", sorted(tags))
            for name, description, tags in collections_of(self._reader, self._source, self._here)
            if self._is_origin or name in sent
        }
        for name in sorted({*mine, *(shown if self._is_origin else ())}):
            where, here, copy = f"{self._here.path}/{name}", mine.get(name), shown.get(name)
            if here is None:
                self._findings.differ(where, "collections", there="the collection")
                continue
            if copy is None:
                if name not in sent:  # of the others, versions are missing
                    self._findings.differ(where, "collections", here="the collection")
                continue
            self._findings.count(collections=1)
            self._pair(where, "description", here[0], copy.description or "", "collections")
            tags = sorted(copy.tags if self._is_origin else set(copy.tags) & set(here[1]))
            self._pair(where, "tags", here[1], tags, "collections")

    def _sequence(self, mine: Sequence[MirroredArtifact], others: Sequence[Listed]) -> None:
        """The versions of one collection, both in order."""

        def key(artifact: Artifact) -> Any:
            return artifact.version if self._is_origin else artifact.digest

        known, there = {key(m.artifact) for m in mine}, {key(one.artifact): one for one in others}
        for m in mine:
            place, one = f"{self._here.path}/{m.artifact.collection}:v{m.artifact.version}", there.get(key(m.artifact))
            if one is None:
                self._findings.differ(place, "artifacts", here="the version")
                continue
            self._findings.count(artifacts=1)
            self._version(place, m.artifact, one)
            self._entries(place, m, one)
        orders = [key(m.artifact) for m in mine if key(m.artifact) in there], [one for one in there if one in known]
        if orders[0] != orders[1]:
            where = f"{self._here.path}/{mine[0].artifact.collection}"
            self._findings.differ(where, "artifacts", key="(order)", here=as_json(orders[0]), there=as_json(orders[1]))
        for one in others if self._whole and self._is_origin else ():
            if one.artifact.version not in known:
                place = f"{self._here.path}/{one.artifact.collection}:v{one.artifact.version}"
                self._findings.differ(place, "artifacts", there="the version")

    def _version(self, place: str, mine: Artifact, listed: Listed) -> None:
        there = listed.artifact
        told = [name for name in _TOLD if self._is_origin or getattr(mine, name) is not None]
        told += MADE if self._is_origin else ()
        pairs = {name: (getattr(mine, name), getattr(there, name)) for name in (*_NAMED, *told)}
        pairs["metadata"] = (_document(mine.metadata), _document(there.metadata))
        pairs["aliases"] = (sorted(mine.aliases), sorted(there.aliases))
        pairs["tags"] = (sorted(mine.tags), sorted(there.tags))
        for name, (here, other) in pairs.items():
            self._pair(place, name, here, other)
        self._logged_by(place, mine, there)
        self._used_by(place, mine, listed)

    def _logged_by(self, place: str, mine: Artifact, there: Artifact) -> None:
        run: RunName | None = None
        if mine.run_id is not None:
            run = (mine.run_entity or "", mine.run_project or "", mine.run_id)
        if run is not None and not self._is_origin:
            run = self._other.copied(self._source, run)
            if run is None or Namespace(run[0], run[1]) != self._there:
                return  # it was not there when the version was made
        shown = (there.run_entity or "", there.run_project or "", there.run_id) if there.run_id is not None else None
        self._pair(place, "logged by", _path(run), _path(shown))

    def _used_by(self, place: str, mine: Artifact, listed: Listed) -> None:
        uses = {(u.entity, u.project, u.run_id) for u in mine.uses or ()}
        try:
            there = runs_that_used(self._client, listed)
        except SourceError as e:
            self._findings.doubt(place, f"the runs that used it could not be read: {e}")
            return
        if there is None:
            if uses:
                self._findings.doubt(place, "the server does not say which runs used it")
            return
        if not self._is_origin:
            copies = {run: self._other.copied(self._source, run) for run in uses}
            self._findings.count(uses_by_runs_that_were_not_sent=sum(copy is None for copy in copies.values()))
            uses = {copy for copy in copies.values() if copy is not None}
            there &= uses
        self._findings.count(uses_of_artifacts=len(uses))
        for run in sorted(there - uses):
            self._findings.differ(place, "artifacts", key="used by", there=as_json(_path(run)))
        for run in sorted(uses - there):
            if not (self._is_origin and is_of_another_source(self._reader, self._source, run)):
                self._findings.differ(place, "artifacts", key="used by", here=as_json(_path(run)))

    def _entries(self, place: str, mine: MirroredArtifact, one: Listed) -> None:
        if one.manifest_url is None:
            self._findings.doubt(place, "artifacts: the server names no address of the manifest")
            return
        try:
            others = {entry.path: entry for entry in fetch_entries(self._client, one)}
            held = {entry.path: entry for entry in entries_of(self._reader, mine)}
        except MirrorError as e:
            self._findings.doubt(place, f"artifacts: {e}")
            return
        for path in sorted({*held, *others}):
            here, there = _said(held.get(path)), _said(others.get(path))
            if here == there:
                continue
            led = self._led is not None and here and there and self._led.same(here[2], there[2])
            if led and here and there and (*here[:2], *here[3:]) == (*there[:2], *there[3:]):
                self._findings.count(references_that_lead_to_copies=1)
                continue
            sides = {name: as_json(side) for name, side in (("here", here), ("there", there)) if side is not None}
            self._findings.differ(place, "artifact entries", key=path, **sides)
        self._findings.count(artifact_entries=len(held))

    def _pair(self, where: str, name: str, here: Any, there: Any, stream: str = "artifacts") -> None:
        here, there = (plain(side) if isinstance(side, datetime) else side for side in (here, there))
        if (here or None) != (there or None):
            self._findings.differ(where, stream, key=name, here=as_json(here), there=as_json(there))


def _said(entry: ArtifactEntry | None) -> list[Any] | None:
    if entry is None:
        return None
    return [entry.digest, entry.size, entry.ref, *([_document(entry.extra)] if entry.extra else [])]


def _path(run: Iterable[str] | None) -> str | None:
    return None if run is None else "/".join(run)


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
