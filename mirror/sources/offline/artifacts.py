"""Artifacts as a log names them. No server numbered them yet: they have no version, only the SDK's own ids."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mirror.errors import TerminalSourceError
from mirror.records import Artifact, ArtifactCollection, ArtifactEntry, ArtifactUse, Item, ItemKey, RunKey
from mirror.sources.offline.framing import Log
from mirror.sources.offline.protobuf import decoded
from mirror.sources.offline.rows import Records

_MANIFEST = ".manifest_contents.jl.gz"
_HEADER = b"wandb-artifact-manifest-v1\n"
_MD5 = ("", "MANIFEST_MD5")

Tell = Callable[[str, str], None]
"""Takes what there is to say, and an example of it."""


def items(record: Any, run: RunKey, tell: Tell) -> list[Item]:
    """The artifact of an ArtifactRecord and the collection it belongs to.

    `client_id` tells versions apart, in every log and on the server the log is synced to.
    """
    entity, project = record.entity or run.entity, record.project or run.project
    entries: Sequence[ArtifactEntry] | None = None
    try:
        entries = tuple(_entry(content) for content in _contents(record))
    except TerminalSourceError as e:
        tell("manifests of artifacts that lie in files of their own cannot be read", str(e))
    name = record.name.rpartition(":")[0] or record.name
    if record.incremental_beta1:
        tell("artifacts only add files to a version that their log does not name: what they add is held", name)
    if record.distributed_id or not record.finalize:
        tell("artifacts are parts of what several runs write together: the part of this run is held", name)
    return [
        ArtifactCollection(
            ItemKey(run.source, f"{entity}/{project}/{record.type}/{name}", run.entity, run.project),
            type=record.type,
            collection=name,
        ),
        Artifact(
            key=ItemKey(run.source, identity(record, run.storage_id), run.entity, run.project),
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


def used(record: Any, run: RunKey) -> list[Item]:
    """An artifact that a run used, as its log names it. Each run has one of its own: what else used it is in other
    logs."""
    name, _, version = record.name.partition(":v")
    return [
        Artifact(
            key=ItemKey(run.source, f"{record.id}@{run.storage_id}", run.entity, run.project),
            type=record.type,
            collection=name,
            version=int(version) if version.isdecimal() and len(version) < 10 else None,
            uses=(ArtifactUse(run.entity, run.project, run.run_id),),
        )
    ]


def identity(record: Any, run: str) -> str:
    """What tells an artifact from others; `run` is the storage id of its run."""
    return str(record.client_id) or f"{run}/{record.type}/{record.name}/{record.digest}"


def staged(log: Path, run: str, wanted: frozenset[str]) -> Iterator[tuple[str, str, str]]:
    """(identity, path, file on this machine) of the entries of these artifacts, as far as the log says where the SDK
    put them."""
    for record in records(log):
        if (found := identity(record, run)) in wanted:
            try:
                for content in _contents(record):
                    if (place := content.get("local_path")) and content.get("digest"):  # else it could be any file
                        yield found, content["path"], place
            except TerminalSourceError:  # said when the log was read
                continue


def records(log: Path) -> Iterator[Any]:
    """The ArtifactRecords of a log."""
    for some in Log(log):
        for data in Records(some).others():
            record = decoded(data)
            if record is not None and record.WhichOneof("record_type") == "artifact":
                yield record.artifact


def _contents(record: Any) -> Iterator[dict[str, Any]]:
    """The entries of a manifest, under the SDK's names. Raises TerminalSourceError for one in a file that is gone or is
    another one by now."""
    manifest = record.manifest
    if manifest.manifest_file_path:
        yield from _in_file(Path(manifest.manifest_file_path), record)
        return
    for entry in manifest.contents:
        yield {
            "path": entry.path,
            "digest": entry.digest,
            "size": entry.size,
            "ref": entry.ref,
            "birth_artifact_id": entry.birth_artifact_id,
            "local_path": entry.local_path,
            "extra": ",".join(f"{json.dumps(item.key)}:{item.value_json}" for item in entry.extra),
        }


def _in_file(path: Path, record: Any) -> list[dict[str, Any]]:
    """The entries of a long manifest, which the SDK writes into its staging folder, a line each. The artifact's digest
    is that of its entries' paths and digests (wandb, sdk/artifacts/artifact_manifests/artifact_manifest_v1.py)."""
    if not path.name.endswith(_MANIFEST):
        raise TerminalSourceError(f"`{path}` is no manifest")
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            found = [json.loads(line) for line in lines]
        seen = hashlib.md5(_HEADER, usedforsecurity=False)
        for path_, digest in sorted((str(entry["path"]), entry["digest"]) for entry in found):
            seen.update(f"{path_}:{digest}\n".encode())
    except (OSError, EOFError, ValueError, KeyError, TypeError) as e:
        raise TerminalSourceError(f"`{path}` cannot be read: {e}", e) from e
    if getattr(record, "digest_algorithm", "") in _MD5 and seen.hexdigest() != record.digest:
        raise TerminalSourceError(f"`{path}` is not the manifest of `{record.name}` any more")
    return found


def _entry(entry: dict[str, Any]) -> ArtifactEntry:
    extra = entry.get("extra")
    if extra and not isinstance(extra, str):
        extra = json.dumps(extra)[1:-1]
    return ArtifactEntry(
        path=entry["path"],
        digest=entry.get("digest") or None,
        size=entry.get("size") or 0,
        ref=entry.get("ref") or None,
        birth_id=entry.get("birth_artifact_id") or None,
        extra=f"{{{extra}}}" if extra else None,
    )
