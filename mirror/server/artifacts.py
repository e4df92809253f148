"""Artifacts that clients log (tables, code, models): accepted, their bytes checked and kept, their records journalled.

`wandb.log({"t": wandb.Table(..)})` makes an artifact, so a run cannot be logged without them. The records lie in
ROOT/live/artifacts.jsonl, one change a line, each on the disk before it is acknowledged; the bytes lie with the
other blobs. They are not in the tables of the mirror yet, and listings of artifacts are empty until they are.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mirror.errors import NotFoundError, UsageError
from mirror.server import ids
from mirror.server.blobs import Blob, blob_path
from mirror.server.rows import dumps
from mirror.store.disk import explained
from mirror.store.layout import Layout

PENDING, COMMITTED = "PENDING", "COMMITTED"


@dataclass
class Part:
    """Bytes that belong to an artifact: `md5` (base64) as announced, `sha256` and `size` once they arrived."""

    md5: str
    sha256: str | None = None
    size: int | None = None


@dataclass
class Artifact:
    """One version of a collection. `manifests` and `files` are by manifest id and by file name."""

    id: str
    entity: str
    project: str
    collection: str
    type: str
    digest: str
    created_at: str
    run: str | None = None
    algorithm: str | None = None
    description: str | None = None
    metadata: str | None = None
    history_step: int | None = None
    ttl: int | None = None
    client_id: str | None = None
    sequence_client_id: str | None = None
    aliases: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    state: str = PENDING
    version: int | None = None
    manifests: dict[str, Part] = field(default_factory=dict)
    files: dict[str, Part] = field(default_factory=dict)
    used_by: list[dict[str, Any]] = field(default_factory=list)

    @property
    def current_manifest(self) -> str | None:
        """The id of the last manifest whose bytes arrived."""
        arrived = [name for name, part in self.manifests.items() if part.sha256]
        return arrived[-1] if arrived else None

    @property
    def sequence(self) -> tuple[str, str, str]:
        return self.entity, self.project, self.collection


class Artifacts:
    """All artifacts of one root, by id."""

    def __init__(self, layout: Layout, *, read_only: bool) -> None:
        self._path = layout.live / "artifacts.jsonl"
        self._blobs: Path = layout.blobs
        self._read_only = read_only
        self._lock = threading.RLock()
        self._held: dict[str, Artifact] = {}
        self._bytes: dict[str, Part] = {}
        self._replay()

    def _replay(self) -> None:
        if not self._path.exists():
            return
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data) and not self._read_only:
            os.truncate(self._path, whole)  # a line cut short by a crash was never acknowledged
        for line in data[:whole].splitlines():
            self._take(json.loads(line))

    def _take(self, record: dict[str, Any]) -> Artifact:
        record["manifests"] = {k: Part(**v) for k, v in record["manifests"].items()}
        record["files"] = {k: Part(**v) for k, v in record["files"].items()}
        known = {f.name for f in fields(Artifact)}
        found = Artifact(**{k: v for k, v in record.items() if k in known})
        self._held[found.id] = found
        self._bytes.update({part.md5: part for part in found.files.values() if part.sha256})
        return found

    def _keep(self, changed: Artifact) -> None:
        """Journal the artifact as it is now. The last line of an id counts."""
        with explained("writing the live tail"):
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                os.write(fd, dumps(asdict(changed)) + b"\n")
                os.fsync(fd)
            finally:
                os.close(fd)

    # -- reading ------------------------------------------------------------------------------------------

    def get(self, artifact_id: str) -> Artifact:
        found = self._held.get(artifact_id)
        if found is None:
            raise NotFoundError(f"there is no artifact with the id `{artifact_id[:100]}` here")
        return found

    def find(self, artifact_id: str) -> Artifact | None:
        return self._held.get(artifact_id)

    def by_client_id(self, client_id: str) -> Artifact | None:
        with self._lock:
            return next((a for a in self._held.values() if a.client_id == client_id), None)

    def by_manifest(self, manifest_id: str) -> Artifact:
        with self._lock:
            for found in self._held.values():
                if manifest_id in found.manifests:
                    return found
        raise NotFoundError(f"there is no artifact manifest with the id `{manifest_id[:100]}` here")

    def latest(self, sequence: tuple[str, str, str]) -> Artifact | None:
        """The newest committed version of a collection."""
        with self._lock:
            versions = [a for a in self._held.values() if a.sequence == sequence and a.state == COMMITTED]
        return max(versions, key=lambda a: a.version or 0, default=None)

    # -- changing -----------------------------------------------------------------------------------------

    def create(self, new: Artifact, *, deduplicate: bool) -> Artifact:
        """A pending artifact, or the committed one of the collection that has the same digest."""
        with self._lock:
            if deduplicate:
                for held in self._held.values():
                    if held.sequence == new.sequence and held.digest == new.digest and held.state == COMMITTED:
                        held.aliases = list(dict.fromkeys(held.aliases + new.aliases))
                        self._keep(held)
                        return held
            self._held[new.id] = new
            self._keep(new)
            return new

    def add_manifest(self, artifact_id: str, digest: str) -> tuple[Artifact, str]:
        """Announce a manifest; the digest is the base64 md5 of its bytes, or empty while they are not known."""
        with self._lock:
            found = self.get(artifact_id)
            for manifest_id, part in found.manifests.items():
                if part.sha256 is None:  # announced again with its digest
                    part.md5 = digest
                    self._keep(found)
                    return found, manifest_id
            manifest_id = ids.encode("ArtifactManifest", "v1", secrets.token_hex(8))
            found.manifests[manifest_id] = Part(digest)
            self._keep(found)
            return found, manifest_id

    def set_manifest_digest(self, manifest_id: str, digest: str | None) -> Artifact:
        with self._lock:
            found = self.by_manifest(manifest_id)
            if digest is not None:
                found.manifests[manifest_id] = Part(digest)
                self._keep(found)
            return found

    def add_files(self, announced: list[tuple[str, str, str]]) -> list[tuple[Artifact, str, bool]]:
        """Announce files as (artifact id, name, md5); says of each whether its bytes are here already."""
        with self._lock:
            made = []
            for artifact_id, name, md5 in announced:
                found = self.get(artifact_id)
                part = self._bytes.get(md5)
                found.files[name] = part or Part(md5)
                made.append((found, name, part is not None))
            for found in {id(a): a for a, _, _ in made}.values():
                self._keep(found)
            return made

    def arrived(self, artifact_id: str, *, manifest: str | None = None, file: str | None = None, blob: Blob) -> None:
        """The bytes of an announced part. `UsageError` if they are not the announced ones."""
        with self._lock:
            found = self.get(artifact_id)
            part = found.manifests.get(manifest) if manifest else found.files.get(file or "")
            if part is None:
                raise NotFoundError(f"nothing of that name was announced for artifact `{found.collection}`")
            if part.md5 and part.md5 != blob.md5:
                raise UsageError(
                    f"the bytes of artifact `{found.collection}` have md5 `{blob.md5}`, announced was `{part.md5}`: "
                    "send them again"
                )
            part.md5, part.sha256, part.size = blob.md5, blob.sha256, blob.size
            if file:
                self._bytes[blob.md5] = part
            self._keep(found)

    def commit(self, artifact_id: str) -> Artifact:
        """Number the artifact, once its manifest and all files the manifest names are here."""
        with self._lock:
            found = self.get(artifact_id)
            if found.state == COMMITTED:
                return found
            self._check_whole(found)
            before = self.latest(found.sequence)
            found.version = 0 if before is None else (before.version or 0) + 1
            found.state = COMMITTED
            self._keep(found)
            return found

    def _check_whole(self, found: Artifact) -> None:
        for name, part in found.files.items():
            if part.sha256 is None:
                raise UsageError(f"file `{name[:200]}` of artifact `{found.collection}` did not arrive: log it again")
        if found.manifests and found.current_manifest is None:
            raise UsageError(f"the manifest of artifact `{found.collection}` did not arrive: log it again")

    def update(self, artifact_id: str, changes: dict[str, Any]) -> Artifact:
        with self._lock:
            found = self.get(artifact_id)
            for name, value in changes.items():
                setattr(found, name, value)
            self._keep(found)
            return found

    def use(self, artifact_id: str, use: dict[str, Any]) -> Artifact:
        with self._lock:
            found = self.get(artifact_id)
            if use not in found.used_by:
                found.used_by.append(use)
                self._keep(found)
            return found

    def bytes_of(self, part: Part) -> Path | None:
        return blob_path(self._blobs, part.sha256) if part.sha256 else None


def new_id() -> str:
    return ids.encode("Artifact", "v1", secrets.token_hex(12))


def timestamp() -> str:
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
