"""The files of artifacts: pages of a manifest's entries, and where their bytes are."""

from __future__ import annotations

import base64
import binascii
import mimetypes
from typing import Any

from graphql import GraphQLResolveInfo

from mirror.errors import UsageError
from mirror.records import Artifact, ArtifactEntry
from mirror.server import ids
from mirror.server.artifacts.stored import Held
from mirror.server.context import Context, context
from mirror.server.wire import connection, wire_time

MAX_FILES = 10_000
"""The most entries of one page. W&B's SDK asks for 5,000."""


def wire_id(ctx: Context, source: str, storage_id: str) -> str:
    return storage_id if source == ctx.home.source else ids.mirrored_run_id(source, storage_id)


def manifest_node(ctx: Context, found: Held) -> dict[str, Any]:
    artifact_id = wire_id(ctx, found.artifact.key.source, found.artifact.key.storage_id)
    return {
        "id": ids.encode("ArtifactManifest", artifact_id),
        "digest": found.artifact.digest,
        "file": {
            "id": ids.encode("ArtifactManifestFile", artifact_id),
            "name": "wandb_manifest.json",
            "displayName": "wandb_manifest.json",
            "sizeBytes": 0,
            "directUrl": ctx.link(f"/artifact-manifests/{artifact_id}", sign="GET"),
        },
    }


def files_page(
    info: GraphQLResolveInfo,
    found: Held,
    names: list[str] | None = None,
    first: int | None = None,
    after: str | None = None,
) -> dict[str, Any]:
    """Entries in the order of their paths: references, too, since clients download what is listed here."""
    ctx = context(info)
    start = ids.decode(after, "Entry", 1) if after else [None]
    if start is None:
        raise UsageError(f"`{(after or '')[:100]}` is no cursor of this server: start again without `after`")
    first = 50 if first is None else min(max(0, first), MAX_FILES)
    listed = ctx.artifacts.stored.entries(found, names=names, after=start[0], limit=first + 1)
    page = listed[:first]
    nodes = [_file(ctx, found.artifact, entry) for entry in page]
    made = connection(nodes, [ids.encode("Entry", e.path) for e in page], more=len(listed) > first)
    return made | {"totalCount": len(page) if names is not None else found.artifact.file_count}


def _file(ctx: Context, artifact: Artifact, entry: ArtifactEntry) -> dict[str, Any]:
    key, name = artifact.key, entry.path.rsplit("/", 1)[-1]
    try:
        md5 = base64.b64decode(entry.digest or "", validate=True).hex() or "none"
    except (ValueError, binascii.Error):
        md5 = "none"
    place = f"{key.entity}/{key.project}/{artifact.collection}/{wire_id(ctx, key.source, key.storage_id)}"
    url = entry.ref or ctx.link(f"/artifactsV2/default/{place}/{md5}/{name}")
    return {
        "id": ids.encode("ArtifactFile", key.storage_id, entry.path),
        "name": entry.path,
        "displayName": entry.path,
        "url": url,
        "directUrl": ctx.link(f"/artifact-bytes/{entry.sha256}/{name}", sign="GET") if entry.sha256 else url,
        "sizeBytes": entry.size or 0,
        "storagePath": None,
        "mimetype": mimetypes.guess_type(name)[0],
        "md5": None if entry.ref else entry.digest,
        "digest": entry.digest,
        "updatedAt": wire_time(artifact.created_at),
    }
