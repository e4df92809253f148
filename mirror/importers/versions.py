"""Artifact versions as the mirror holds them, in the order in which they can be made anew."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from zlib import crc32

from mirror.errors import MirrorError
from mirror.importers.places import Namespace
from mirror.query.sql import asking
from mirror.records import Artifact, ArtifactEntry, ArtifactUse, ItemKey, manifest_digest

if TYPE_CHECKING:
    from mirror.store import Reader

RUN_TABLE = "run_table"
"""The type of the artifacts that the SDK logs tables of a run as."""
EXPORTS = "wandb-history"
"""The type of the artifacts that W&B's servers export histories to: they make them by themselves."""


@dataclass(frozen=True)
class MirroredArtifact:
    """A version as the mirror holds it; `rid` is its number."""

    rid: int
    artifact: Artifact

    @property
    def path(self) -> str:
        a = self.artifact
        return f"{a.key.entity}/{a.key.project}/{a.collection}:v{a.version}"

    def fingerprint(self) -> str:
        """32 hex digits that change whenever anything of the version does that could be sent."""
        return hashlib.blake2b(repr(replace(self.artifact, entries=None)).encode(), digest_size=16).hexdigest()


def versions_of(reader: Reader, source: str, here: Namespace) -> Iterator[MirroredArtifact]:
    """The versions of a project that are there, in the order in which they can be made: each sequence in its order,
    and what others refer to before them."""
    with asking(reader) as connection:
        cursor = connection.execute(
            "select * from raw.artifacts_live where source = ? and entity = ? and project = ? and deleted_at is null "
            "and state = 'COMMITTED' and type <> ? order by collection, version",
            [source, here.entity, here.project, EXPORTS],
        )
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
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


_FIELDS = (
    "type", "collection", "version", "state", "digest", "description", "metadata", "size", "file_count",
    "history_step", "ttl_seconds", "run_entity", "run_project", "run_id",
)  # fmt: skip


def _artifact(row: Mapping[str, Any], uses: Sequence[ArtifactUse]) -> Artifact:
    key = ItemKey(row["source"], row["storage_id"], row["entity"], row["project"])
    return Artifact(
        key, aliases=tuple(row["aliases"] or ()), tags=tuple(row["tags"] or ()), uses=tuple(uses),
        **{name: row[name] for name in _FIELDS},
    )  # fmt: skip


def entries_of(reader: Reader, mirrored: MirroredArtifact) -> list[ArtifactEntry]:
    """The entries of a version. Raises MirrorError if they are not those of its digest."""
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


class TableIds:
    """How rows of runs name the tables they show: by ids that the SDK made up for artifacts it logged them as, as in
    `wandb-client-artifact://<id>/t.table.json`. A copy that is made under the same ids is found by them.

    Such an artifact is of type `run_table` and called after run and key; a table that was shown before is no new
    version of it (wandb 0.31). So its n-th version is the n-th different table that rows of the run show under the key.
    """

    def __init__(self, reader: Reader, source: str, here: Namespace) -> None:
        self._found: dict[tuple[str, str], dict[str, list[tuple[str, str]]]] = {}
        with asking(reader) as connection:
            rows = connection.execute(
                """
                select l.run_id, c.key, json_extract_string(c.j, '$.sha256') as sha256,
                       regexp_extract(json_extract_string(c.j, '$.artifact_path'), $own, 1) as own,
                       regexp_extract(json_extract_string(c.j, '$._latest_artifact_path'), $latest, 1)
                from raw.typed_cells c join raw.live l on l.rid = c.rid
                where l.source = $source and l.entity = $entity and l.project = $project and c.stream = 'history'
                  and sha256 is not null and own <> '' order by c.rid, c.row
                """,
                {
                    "source": source,
                    "entity": here.entity,
                    "project": here.project,
                    "own": "^wandb-client-artifact://([0-9A-Za-z]+)/",
                    "latest": "^wandb-client-artifact://([0-9A-Za-z]+):latest/",
                },
            ).fetchall()
        for run_id, key, sha256, own, sequence in rows:
            shown = self._found.setdefault((run_id, _collection(run_id, key)), {})
            ids = shown.setdefault(sha256, [])
            if (own, sequence) not in ids:
                ids.append((own, sequence))

    def of(self, artifact: Artifact) -> list[tuple[str, str]]:
        """The ids that rows have for a version, and for its sequence; none if no row shows it."""
        shown = list(self._found.get((artifact.run_id or "", artifact.collection), {}).values())
        if artifact.type != RUN_TABLE or artifact.version is None or artifact.version >= len(shown):
            return []
        return shown[artifact.version]


def _collection(run_id: str, key: str) -> str:
    """What the SDK calls the artifact: what a name may not hold is left out, and a checksum of the name added."""
    name = f"run-{run_id}-{key}"
    allowed = re.sub(r"[^a-zA-Z0-9_\-.]+", "", name)
    if allowed == name:
        return name
    checksum = base64.urlsafe_b64encode(crc32(name.encode("utf-8", "surrogatepass")).to_bytes(4, "big"))
    return f"{allowed}-{checksum.decode().rstrip('=')}"
