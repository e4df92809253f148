"""Artifacts, logged to a W&B server the way its SDK does it (wandb 0.31).

A version is created as a draft, gets a manifest without content, its files, the manifest's content, and is committed.
A client names a draft by an id of its own, so that one who asks again is given the same draft.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mirror.errors import TerminalSourceError
from mirror.manifests import stream
from mirror.records import Artifact, ArtifactEntry
from mirror.wandb.artifact_bytes import FILES_AT_ONCE, Stored, send_files
from mirror.wandb.client import Client
from mirror.wandb.mutations import mutate
from mirror.wandb.transport import LONG, Patience
from mirror.wandb.uploads import Upload, headers, put

_DIGESTED = "MANIFEST_MD5"
_NEVER_EXPIRES = -2
"""What the wire has for an artifact that lives for ever; without a word it lives as long as its project says."""


@dataclass(frozen=True)
class Draft:
    """A version that is being made; `committed` if the server has one with these entries already."""

    storage_id: str
    committed: bool


def client_id(*names: str) -> str:
    """The id a client has for a version or a collection: 128 characters, the same whenever it is asked again."""
    return hashlib.blake2b("\0".join(names).encode("utf-8", "surrogatepass"), digest_size=64).hexdigest()


def create_artifact(
    client: Client, artifact: Artifact, *, run_id: str | None, ids: tuple[str, str], patience: Patience = LONG
) -> Draft:
    """Begin a version of `artifact.collection` in the project of its key, logged by a run there or by none. `ids` are
    the client's for it and for its collection."""
    where = artifact.key
    given: dict[str, tuple[str, Any]] = {
        "entityName": ("String!", where.entity),
        "projectName": ("String!", where.project),
        "runName": ("String", run_id),
        "artifactTypeName": ("String!", artifact.type),
        "artifactCollectionName": ("String!", artifact.collection),
        "digest": ("String!", artifact.digest),
        "digestAlgorithm": ("ArtifactDigestAlgorithm!", _DIGESTED),
        "description": ("String", artifact.description),
        "aliases": ("[ArtifactAliasInput!]", _aliases(artifact) or None),
        "tags": ("[TagInput!]", _tags(artifact.tags) or None),
        "metadata": ("JSONString", artifact.metadata),
        "historyStep": ("Int64", artifact.history_step),
        "ttlDurationSeconds": ("Int64", _NEVER_EXPIRES if artifact.ttl_seconds == 0 else artifact.ttl_seconds),
        "enableDigestDeduplication": ("Boolean", True),
        "clientID": ("ID!", ids[0]),
        "sequenceClientID": ("ID!", ids[1] or None),
    }
    made = mutate(client, "createArtifact", given, "artifact { id state }", patience=patience).get("artifact") or {}
    if not isinstance(made.get("id"), str):
        raise TerminalSourceError(f"`{client.source}` did not say which artifact it made of `{artifact.collection}`")
    return Draft(made["id"], made.get("state") == "COMMITTED")


def upload_artifact(
    client: Client,
    artifact: Artifact,
    storage_id: str,
    entries: Sequence[ArtifactEntry],
    place: Callable[[ArtifactEntry], Path],
    *,
    run_id: str | None,
    patience: Patience = LONG,
    workers: int = 4,
    sent: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Give a draft its entries, and commit it. `place` is where the bytes of a file lie; `sent` is told of bytes.
    Files that the server has of an earlier version are not sent again."""
    manifest, _ = _manifest(client, artifact, storage_id, run_id, "", patience)
    files = [Stored(e, path := place(e), path.stat().st_size) for e in entries if e.ref is None]
    born = send_files(client, storage_id, manifest, files, patience=patience, workers=workers, sent=sent)
    content = b"".join(stream(_in_batches(replace(e, birth_id=born.get(e.path)) for e in entries)))
    digest = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
    _, file = _manifest(client, artifact, storage_id, run_id, digest, patience)
    if not (url := file.get("uploadUrl")):
        raise TerminalSourceError(f"`{client.source}` gave no place for the manifest of `{artifact.collection}`")
    put(client, url, Upload("wandb_manifest.json", content), headers(file.get("uploadHeaders")), patience)
    mutate(client, "commitArtifact", {"artifactID": ("ID!", storage_id)}, "artifact { id }", patience=patience)


def use_artifact(client: Client, storage_id: str, entity: str, project: str, run_id: str, used_as: str | None) -> None:
    """Say that a run uses an artifact."""
    given = {
        "entityName": ("String!", entity),
        "projectName": ("String!", project),
        "runName": ("String!", run_id),
        "artifactID": ("ID!", storage_id),
        "usedAs": ("String", used_as),
    }
    mutate(client, "useArtifact", given, "artifact { id }")


def update_artifact(client: Client, storage_id: str, wanted: Artifact, held: Artifact) -> None:
    """Make aliases, tags, description and metadata of a version what `wanted` says; `held` is what it has."""
    given: dict[str, tuple[str, Any]] = {
        "artifactID": ("ID!", storage_id),
        "description": ("String", wanted.description or ""),
        "metadata": ("JSONString", wanted.metadata),
        "aliases": ("[ArtifactAliasInput!]", _aliases(wanted)),
        "tagsToAdd": ("[TagInput!]", _tags(set(wanted.tags) - set(held.tags))),
        "tagsToDelete": ("[TagInput!]", _tags(set(held.tags) - set(wanted.tags))),
    }
    mutate(client, "updateArtifact", given, "artifact { id }")


def describe_collection(client: Client, storage_id: str, description: str) -> None:
    """Set the description of a collection of versions."""
    given = {"artifactSequenceID": ("ID!", storage_id), "description": ("String", description)}
    mutate(client, "updateArtifactSequence", given, "artifactCollection { id }")


def tag_collection(client: Client, entity: str, project: str, collection: str, tags: Iterable[str]) -> None:
    """Add tags to a collection."""
    given = {
        "entityName": ("String!", entity),
        "projectName": ("String!", project),
        "artifactCollectionName": ("String!", collection),
        "tags": ("[TagInput!]!", _tags(tags)),
    }
    mutate(client, "createArtifactCollectionTagAssignments", given, "tags { name }")


def _manifest(
    client: Client, artifact: Artifact, storage_id: str, run_id: str | None, digest: str, patience: Patience
) -> tuple[str, dict[str, Any]]:
    """Announce the manifest: its id, and where its content goes."""
    given: dict[str, tuple[str, Any]] = {
        "artifactID": ("ID!", storage_id),
        "name": ("String!", "wandb_manifest.json"),
        "digest": ("String!", digest),
        "entityName": ("String!", artifact.key.entity),
        "projectName": ("String!", artifact.key.project),
        "runName": ("String", run_id),
        "type": ("ArtifactManifestType!", "FULL"),
    }
    shown = "artifactManifest { id file { id uploadUrl uploadHeaders } }"
    made = mutate(client, "createArtifactManifest", given, shown, patience=patience).get("artifactManifest") or {}
    return str(made.get("id")), made.get("file") or {}


def _aliases(artifact: Artifact) -> list[dict[str, str]]:
    return [{"artifactCollectionName": artifact.collection, "alias": alias} for alias in artifact.aliases]


def _tags(tags: Iterable[str]) -> list[dict[str, str]]:
    return [{"tagName": tag} for tag in sorted(tags)]


def _in_batches(entries: Iterable[ArtifactEntry]) -> Iterator[list[ArtifactEntry]]:
    batch: list[ArtifactEntry] = []
    for entry in entries:
        batch.append(entry)
        if len(batch) == FILES_AT_ONCE:
            yield batch
            batch = []
    yield batch
