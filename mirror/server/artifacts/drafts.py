"""Artifacts on their way in: announced, perhaps half uploaded, not committed. Nobody sees them but their client.

Each is one file ROOT/live/artifacts/<token>.jsonl: a line that says what it will be, then a line for everything that
arrived. It goes when the artifact is committed, or when nobody has touched it for a week. Nothing is held in memory, so
a server that was killed goes on where it stopped. Lines are not synced to the disk: what a power cut takes of an
artifact that was never acknowledged, its client hears of when it commits.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mirror.errors import NotFoundError
from mirror.records import Artifact, ItemKey
from mirror.server import ids
from mirror.server.rows import dumps
from mirror.store.blobs import Blob
from mirror.store.disk import explained

KEPT = 7 * 24 * 3600.0
"""Seconds after which an artifact that was never finished is forgotten."""

_TOKEN = re.compile(r"[0-9a-f]{24}")


@dataclass(frozen=True)
class Draft:
    """What an artifact will be. `distributed` ones get a part of their manifest from each of several clients."""

    artifact: Artifact
    deduplicate: bool = True
    distributed: bool = False

    @property
    def token(self) -> str:
        return token_of(self.artifact.key.storage_id) or ""


@dataclass
class ManifestPart:
    """One announced manifest. `kind` is FULL, PATCH (one of several) or INCREMENTAL (on top of `base`)."""

    id: str
    kind: str
    base: str | None
    md5: str | None = None
    sha256: str | None = None


@dataclass
class Arrived:
    """What came for a draft: manifests in order, and bytes as md5 -> (sha256, size)."""

    manifests: dict[str, ManifestPart] = field(default_factory=dict)
    files: dict[str, tuple[str, int]] = field(default_factory=dict)


def token_for(*names: str) -> str:
    """The token of whatever these names identify: asked again, it is the same one."""
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogatepass")).hexdigest()[:24]


def new_token() -> str:
    return secrets.token_hex(12)


def id_of(token: str) -> str:
    """The id of the artifact. The SDK turns ids into hex and back, so they must be base64 without `-` and `_`,
    which those of plain hex are."""
    return ids.encode("Artifact", "v1", token)


def token_of(artifact_id: str) -> str | None:
    parts = ids.decode(artifact_id, "Artifact", 2)
    return parts[1] if parts and _TOKEN.fullmatch(parts[1]) else None


class Drafts:
    """The drafts of one root."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self, draft: Draft) -> bool:
        """Note a new draft; False if its token is taken."""
        found = asdict(draft) | {"kind": "draft"}
        return self._begin(draft.token, found)

    def point(self, token: str, artifact_id: str) -> None:
        """Let a token lead to an artifact that is committed already."""
        self._path(token).unlink(missing_ok=True)
        self._begin(token, {"kind": "same", "id": artifact_id})

    def _begin(self, token: str, header: dict[str, Any]) -> bool:
        tmp = self._folder / f"{token}-{secrets.token_hex(4)}.tmp"
        with explained("writing the live tail"):
            self._folder.mkdir(parents=True, exist_ok=True)
            tmp.write_bytes(dumps(header) + b"\n")
            try:
                os.link(tmp, self._path(token))
            except FileExistsError:
                return False
            finally:
                tmp.unlink()
        return True

    def find(self, token: str | None) -> Draft | str | None:
        """The draft, the id of the committed artifact that the token leads to, or None."""
        if token is None or not _TOKEN.fullmatch(token):
            return None
        try:
            with self._path(token).open("rb") as lines:
                found = json.loads(lines.readline())
        except FileNotFoundError:
            return None
        if found["kind"] == "same":
            return str(found["id"])
        return Draft(_artifact(found["artifact"]), found["deduplicate"], found["distributed"])

    def arrived(self, token: str) -> Arrived:
        found = Arrived()
        for line in self._lines(token):
            if "manifest" in line:
                part = found.manifests.setdefault(
                    line["manifest"], ManifestPart(line["manifest"], line.get("type", "FULL"), line.get("base"))
                )
                part.md5 = line.get("md5", part.md5)
                part.sha256 = line.get("sha256", part.sha256)
            elif "file" in line:
                found.files[line["file"]] = (line["sha256"], line["size"])
        return found

    def changes(self, token: str) -> dict[str, Any]:
        """What was changed of the draft since it was made: fields of `Artifact`."""
        found: dict[str, Any] = {}
        for line in self._lines(token):
            found |= line.get("set", {})
        return {name: tuple(v) if name in ("aliases", "tags") else v for name, v in found.items()}

    def _lines(self, token: str) -> Iterator[dict[str, Any]]:
        try:
            with self._path(token).open("rb") as lines:
                lines.readline()
                for line in lines:
                    with suppress(ValueError):  # a line cut short by a crash was never acknowledged
                        if line.strip():
                            yield json.loads(line)
        except FileNotFoundError:
            raise NotFoundError(_gone(token)) from None

    # -- changing -----------------------------------------------------------------------------------------

    def announce_manifest(self, token: str, kind: str, base: str | None, md5: str | None) -> str:
        """Returns the manifest's name: hex, unlike any other."""
        name = secrets.token_hex(8)
        self._note(token, {"manifest": name, "type": kind, "base": base} | ({"md5": md5} if md5 else {}))
        return name

    def set_manifest_md5(self, token: str, name: str, md5: str) -> None:
        self._note(token, {"manifest": name, "md5": md5})

    def manifest_came(self, token: str, name: str, blob: Blob) -> None:
        self._note(token, {"manifest": name, "md5": blob.md5, "sha256": blob.sha256})

    def file_came(self, token: str, blob: Blob) -> None:
        self._note(token, {"file": blob.md5, "sha256": blob.sha256, "size": blob.size})

    def change(self, token: str, changes: dict[str, Any]) -> None:
        self._note(token, {"set": changes})

    def _note(self, token: str, line: dict[str, Any]) -> None:
        with explained("writing the live tail"):
            try:
                fd = os.open(self._path(token), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            except FileNotFoundError:
                raise NotFoundError(_gone(token)) from None
            try:
                # The newline before it keeps the line whole if a crash cut the last one short.
                os.write(fd, b"\n" + dumps(line) + b"\n")
            finally:
                os.close(fd)

    def remove(self, token: str) -> None:
        self._path(token).unlink(missing_ok=True)
        shutil.rmtree(self.parts(token), ignore_errors=True)

    def sweep(self, older: float = KEPT) -> None:
        """Forget what nobody has touched for `older` seconds."""
        with suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                if path.is_file() and time.time() - path.stat().st_mtime > older:
                    path.unlink(missing_ok=True)
                    if _TOKEN.fullmatch(path.stem):
                        self.remove(path.stem)

    # -- places -------------------------------------------------------------------------------------------

    def _path(self, token: str) -> Path:
        assert _TOKEN.fullmatch(token)
        return self._folder / f"{token}.jsonl"

    def parts(self, token: str) -> Path:
        """The folder with pieces of files that come in several parts."""
        assert _TOKEN.fullmatch(token)
        return self._folder / f"{token}.parts"


def _gone(token: str) -> str:
    return f"there is no unfinished artifact with the id `{id_of(token)}` here: log it again"


def _artifact(found: dict[str, Any]) -> Artifact:
    for name in ("created_at", "updated_at"):
        found[name] = datetime.fromisoformat(found[name]) if found[name] else None
    for name in ("aliases", "tags"):
        found[name] = tuple(found[name])
    return Artifact(**found | {"key": ItemKey(**found["key"])})
