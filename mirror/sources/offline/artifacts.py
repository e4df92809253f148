"""Artifacts as a log names them. No server numbered them yet: they have no version, only the SDK's own ids."""

from __future__ import annotations

from typing import Any

from mirror.records import Artifact, ArtifactCollection, ArtifactEntry, Item, ItemKey, RunKey


def items(record: Any, run: RunKey) -> list[Item]:
    """The artifact of an ArtifactRecord and the collection it belongs to.

    `client_id` tells versions apart, in every log and on the server the log is synced to.
    """
    entity, project = record.entity or run.entity, record.project or run.project
    identity = record.client_id or f"{run.storage_id}/{record.type}/{record.name}/{record.digest}"
    entries = None
    if not record.manifest.manifest_file_path:  # long manifests lie in a file of their own, which sync removes
        entries = tuple(_entry(e) for e in record.manifest.contents)
    name = record.name.rpartition(":")[0] or record.name
    return [
        ArtifactCollection(
            ItemKey(run.source, f"{entity}/{project}/{record.type}/{name}", run.entity, run.project),
            type=record.type,
            collection=name,
        ),
        Artifact(
            key=ItemKey(run.source, identity, run.entity, run.project),
            type=record.type,
            collection=name,
            state="PENDING",
            digest=record.digest or None,
            aliases=tuple(record.aliases),
            tags=tuple(record.tags),
            description=record.description or None,
            metadata=record.metadata or None,
            size=sum(e.size or 0 for e in entries) if entries is not None else None,
            file_count=len(entries) if entries is not None else None,
            ttl_seconds=record.ttl_duration_seconds if record.ttl_duration_seconds > 0 else None,
            run_entity=run.entity,
            run_project=run.project,
            run_id=run.run_id,
            entries=entries,
        ),
    ]


def _entry(entry: Any) -> ArtifactEntry:
    extra = ",".join(f'"{item.key}":{item.value_json}' for item in entry.extra)
    return ArtifactEntry(
        path=entry.path,
        digest=entry.digest or None,
        size=entry.size,
        ref=entry.ref or None,
        birth_id=entry.birth_artifact_id or None,
        extra=f"{{{extra}}}" if extra else None,
    )
