"""Artifact versions as the mirror holds them, in the order in which they can be made anew."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mirror.errors import MirrorError
from mirror.importers.from_mlflow.models import collection_name, model_versions, tags_of
from mirror.importers.places import Namespace
from mirror.query.sql import asking, dicts
from mirror.records import Artifact, ArtifactEntry, ArtifactUse, ItemKey, manifest_digest

if TYPE_CHECKING:
    from mirror.store import Reader

EXPORTS = "wandb-history"
"""The type of the artifacts that W&B's servers export histories to: they make them by themselves."""


@dataclass(frozen=True)
class MirroredArtifact:
    """A version as the mirror holds it; `rid` is its number, `lacking` what is to be said of bytes it is without,
    `texts` are bytes that no file of the mirror has, by SHA-256."""

    rid: int
    artifact: Artifact
    lacking: str | None = None
    texts: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def path(self) -> str:
        a = self.artifact
        return f"{a.key.entity}/{a.key.project}/{a.collection}:v{a.version}"

    def fingerprint(self) -> str:
        """32 hex digits that change whenever anything of the version does that could be sent."""
        made: dict[str, Any] = dict.fromkeys(MADE)
        sendable = replace(self.artifact, entries=None, **made)
        return hashlib.blake2b(repr(sendable).encode(), digest_size=16).hexdigest()


def versions_of(reader: Reader, source: str, here: Namespace) -> Iterator[MirroredArtifact]:
    """The versions of a project that are there, in the order in which they can be made: each sequence in its order,
    and what others refer to before them."""
    if source.startswith("mlflow:"):
        yield from (
            MirroredArtifact(m.rid, m.artifact, m.lacking, m.texts) for m in model_versions(reader, source, here)
        )
        return
    with asking(reader) as connection:
        cursor = connection.execute(
            "select * from raw.artifacts_live where source = ? and entity = ? and project = ? and deleted_at is null "
            "and state = 'COMMITTED' and type <> ? order by collection, version",
            [source, here.entity, here.project, EXPORTS],
        )
        rows = dicts(cursor)
        uses: dict[int, list[ArtifactUse]] = {}
        for rid, *use in connection.execute(
            "select u.rid, u.entity, u.project, u.run_id, u.used_as from raw.artifact_uses u "
            "join raw.artifacts_live a on a.rid = u.rid and a.uses_gen = u.gen "
            "where a.source = ? and a.entity = ? and a.project = ? order by u.run_id, u.used_as",
            [source, here.entity, here.project],
        ).fetchall():
            uses.setdefault(rid, []).append(ArtifactUse(*use))
    made: list[tuple[Any, MirroredArtifact]] = []
    latest: dict[str, Any] = {}
    for row in rows:
        name = row["collection"]
        # No version goes before an earlier one of its sequence, whatever its time says.
        at = max((t for t in (latest.get(name), row["created_at"]) if t is not None), default=None)
        latest[name] = at
        made.append(((at is not None, at or 0), MirroredArtifact(row["rid"], _artifact(row, uses.get(row["rid"], [])))))
    made.sort(key=lambda pair: pair[0])
    yield from (mirrored for _, mirrored in made)


MADE = ("created_at", "username", "commit_hash")
"""What only the server that made a version can say of it."""
_FIELDS = (
    "type", "collection", "version", "state", "digest", "description", "metadata", "size", "file_count",
    "history_step", "ttl_seconds", "run_entity", "run_project", "run_id", *MADE,
)  # fmt: skip


def _artifact(row: Mapping[str, Any], uses: Sequence[ArtifactUse]) -> Artifact:
    key = ItemKey(row["source"], row["storage_id"], row["entity"], row["project"])
    return Artifact(
        key, aliases=tuple(row["aliases"] or ()), tags=tuple(row["tags"] or ()), uses=tuple(uses),
        **{name: row[name] for name in _FIELDS},
    )  # fmt: skip


def collections_of(reader: Reader, source: str, here: Namespace) -> list[tuple[str, str | None, list[str]]]:
    """Name, description and tags of the collections of a project."""
    with asking(reader) as connection:
        held: list[tuple[str, str | None, list[str]]] = connection.execute(
            "select collection, description, coalesce(tags, []) from artifact_collections where source = ? "
            "and entity = ? and project = ? and deleted_at is null and type is distinct from ?",
            [source, here.entity, here.project, EXPORTS],
        ).fetchall()
    if source.startswith("mlflow:"):
        return [(collection_name(name), description, tags_of(tags)) for name, description, tags in held]
    return held


def entries_of(reader: Reader, mirrored: MirroredArtifact) -> list[ArtifactEntry]:
    """The entries of a version. Raises MirrorError if they are not those of its digest."""
    if mirrored.artifact.entries is not None:
        return list(mirrored.artifact.entries)
    with asking(reader) as connection:
        rows = connection.execute(
            "select e.path, e.digest, e.size, e.ref, e.birth_id, e.extra, e.sha256 from raw.artifact_entries e "
            "join raw.artifacts_live a on a.rid = e.rid and a.entries_gen = e.gen where e.rid = ? order by e.path",
            [mirrored.rid],
        ).fetchall()
    entries = [ArtifactEntry(*row) for row in rows]
    if manifest_digest((e.path, e.digest) for e in entries) != mirrored.artifact.digest:
        raise MirrorError(f"the mirror does not hold the manifest of `{mirrored.path}`: sync its project again")
    return entries
